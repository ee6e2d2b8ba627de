"""The command line: `python -m subspace_lib book`, `data` or `benchmark`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from subspace_lib.book import DEVICES, build_book
from subspace_lib.chapters import BookError


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, like every other error of the command line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"error: {message}\n")


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m subspace_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{book,data,benchmark}")
    book = commands.add_parser("book", help="execute the chapters and build the pages")
    book.add_argument("--profile", default="quick", help="smoke, quick (the default) or full")
    book.add_argument("--device", choices=DEVICES, help="by default the GPU if there is one")
    book.add_argument("--only", nargs="+", default=[], metavar="CHAPTER", help="as 03_intrinsic_dimension")
    book.add_argument("--jobs", type=int, help="chapters at a time; by default 2, on a GPU 1")
    benchmark = commands.add_parser("benchmark", help="measure what every projection costs")
    benchmark.add_argument("--device", choices=DEVICES, default="cpu", help="where to measure; by default the CPU")
    benchmark.add_argument("--out", type=Path, default=Path("data/results"), help="folder of the table and the picture")
    commands.add_parser("data", help="fetch the data sets, and say what is there")
    return parser.parse_args(arguments)


def show_data() -> None:
    """Load both data sets and print a line on each."""
    from subspace_lib.datasets import data_folder, load_dataset

    print(f"folder: {data_folder()}")
    for name in ("mnist", "cifar10"):
        data = load_dataset(name)
        kind = "offline stand-in" if data.name.endswith("-standin") else "the real data"
        parts = {"train": data.train, "val": data.val, "test": data.test}
        sizes = ", ".join(f"{part} {len(pair[1]):,}" for part, pair in parts.items() if pair)
        print(f"{name}: {kind}; {sizes}; images {tuple(data.train[0].shape[1:])}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (a chapter failed), 2 (bad input) or 130 (stopped)."""
    chosen = read_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if chosen.command == "book":
            build_book(chosen.profile, chosen.device, chosen.only, chosen.jobs)
        elif chosen.command == "benchmark":
            from subspace_lib.benchmark import run_benchmark

            run_benchmark(chosen.device, chosen.out)
        else:
            show_data()
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
