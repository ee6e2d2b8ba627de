"""The command line: `python -m subspace_lib book`, and so on; `--help` lists the commands.

What a command needs is imported when it is chosen, so that a Ctrl-C finds us ready from the start.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from subspace_lib.processes import Unfinished

DEVICES = ("cpu", "cuda")
SOME: dict[str, Any] = {"nargs": "+", "default": [], "action": "extend"}
"""What may be named several times, at once or one by one."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, like every other error of the command line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"error: {message}\n")


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m subspace_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    book = commands.add_parser("book", help="execute the chapters and build the pages")
    book.add_argument("--executed", type=Path, metavar="DIR", help="build from what `execute --out DIR` made; run none")
    execute = commands.add_parser("execute", help="execute the chapters, without building pages")
    execute.add_argument("--out", type=Path, default=Path("_build/executed"), help="folder of the executed chapters")
    for command in (book, execute):
        command.add_argument("--profile", default="quick", help="smoke, quick (the default) or full")
        command.add_argument("--device", choices=DEVICES, help="by default the GPU if there is one")
        command.add_argument("--only", **SOME, metavar="CHAPTER", help="as 03_intrinsic_dimension")
        command.add_argument("--jobs", type=int, help="chapters at a time; by default 2, on a GPU 1")
        command.add_argument("--limit", type=float, default=3600, help="seconds for each chapter")
    commands.add_parser("pdf", help="print the chapters executed last as one PDF, with Chromium")
    commands.add_parser("epub", help="write the chapters executed last as one EPUB")
    notebooks = commands.add_parser("notebooks", help="write the chapters as Colab and Kaggle show them best")
    notebooks.add_argument("--out", type=Path, default=Path("_build/notebooks"), help="folder of the notebooks")
    student = commands.add_parser("student", help="write these notebooks without their solutions")
    student.add_argument("--out", type=Path, default=Path("_build/student"), help="folder of the notebooks")
    benchmark = commands.add_parser("benchmark", help="measure what every projection costs")
    benchmark.add_argument("--device", choices=DEVICES, default="cpu", help="where to measure; by default the CPU")
    benchmark.add_argument("--out", type=Path, default=Path("data/results"), help="folder of the table and the picture")
    benchmark.add_argument("--only", **SOME, metavar="FAMILY", help="the table's other rows stay")
    gpu = commands.add_parser("gpu", help="all that is to be learned from a GPU, in parts with a time limit each")
    gpu.add_argument("--parts", type=lambda text: text.split(","), metavar="PART,PART", help="as benchmark,many")
    gpu.add_argument("--out", type=Path, default=Path("_build/gpu"), help="folder of what it finds out")
    gpu.add_argument("--tiny", action="store_true", help="rehearse it, at a size for any machine")
    sweep = commands.add_parser("sweep", help="make the runs of an experiment that are not recorded yet")
    sweep.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="as f3; `all` is the whole study")
    sweep.add_argument("--profile", default="full", help="smoke, quick or full (the default)")
    sweep.add_argument("--device", choices=DEVICES, help="by default the GPU if there is one")
    sweep.add_argument("--jobs", type=int, help="processes at a time; by default one a core, on a GPU 1")
    sweep.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster, as tcp://host:8786")
    sweep.add_argument("--out", type=Path, default=Path("data"), help="folder of records/ and results/")
    sweep.add_argument("--dirty", action="store_true", help="record runs of code that is in no commit, too")
    commands.add_parser("data", help="fetch the data sets, and say what is there")
    for target in ("lint", "test", "check-pages", "colab"):
        commands.add_parser(target, help=f"what `make {target}` does, in this environment")
    return parser.parse_args(arguments)


def show_data() -> None:
    """Load both data sets and print a line on each."""
    from subspace_lib.tasks.datasets import data_folder, load_dataset

    print(f"folder: {data_folder()}")
    for name in ("mnist", "cifar10"):
        data = load_dataset(name)
        kind = "offline stand-in" if data.name.endswith("-standin") else "the real data"
        parts = {"train": data.train, "val": data.val, "test": data.test}
        sizes = ", ".join(f"{part} {len(pair[1]):,}" for part, pair in parts.items() if pair)
        print(f"{name}: {kind}; {sizes}; images {tuple(data.train[0].shape[1:])}")


def run_sweeps(
    experiments: list[str], profile: str, device: str | None, jobs: int | None, dask: str | None, out: Path, dirty: bool
) -> None:
    """Make the runs of each experiment; only full-size runs of committed code enter the tables of results/."""
    from subspace_lib.study.experiments import EXPERIMENTS, check_names, experiment
    from subspace_lib.study.sweep import SweepError, code_commit, sweep
    from subspace_lib.tasks.profiles import default_device, get_profile

    device = device or default_device()
    jobs = jobs if jobs is not None else (1 if device.startswith("cuda") else os.cpu_count() or 1)
    size = get_profile(profile)
    failed: list[str] = []
    names = list(EXPERIMENTS) if "all" in experiments else experiments
    check_names(names)
    for name in names:
        try:
            specs = experiment(name, size, out / "results")
        except ValueError as error:
            if not failed:
                raise
            failed.append(f"{name}: {error}")  # perhaps for want of what failed before it
            continue
        full = profile == "full"
        if full and not dirty and ((state := code_commit()) == "unknown" or state.endswith("-dirty")):
            raise ValueError(
                f"the code of these runs would be in no commit ({state}); commit it, or say --dirty to record them so"
            )
        records = out / "records" / (name if full else f"{profile}/{name}")
        table = (out / "results" if full else records.parent) / f"{name}.jsonl"
        try:
            known = sweep(specs, records, table, device=device, jobs=jobs, dask=dask, require_real=full)
        except SweepError as error:
            failed.append(str(error))
            continue
        print(f"{name}: {sum(spec.key in known for spec in specs)} of {len(specs)} runs in {table.with_suffix('.csv')}")
    if failed:
        raise SweepError("\n".join(failed))


def run(chosen: argparse.Namespace) -> None:
    """Run one command."""
    if chosen.command in ("book", "execute"):
        from subspace_lib.press import build

        how = (chosen.profile, chosen.device, chosen.only, chosen.jobs, chosen.limit)
        if chosen.command == "execute":
            build.execute_chapters(chosen.out, *how)
        elif chosen.executed:
            build.pages_of(chosen.executed)
        else:
            build.build_book(*how)
    elif chosen.command == "pdf":
        from subspace_lib.press import build, pages

        pages.print_book(build.ROOT)
    elif chosen.command == "epub":
        from subspace_lib.press import build, epub

        epub.write_epub(build.ROOT)
    elif chosen.command in ("notebooks", "student"):
        from subspace_lib.press import build, takeaway

        takeaway.write_notebooks(build.ROOT, chosen.out, solutions=chosen.command == "notebooks")
    elif chosen.command == "benchmark":
        from subspace_lib.press.figures import write_benchmark_picture
        from subspace_lib.study.benchmark import run_benchmark

        print(write_benchmark_picture(run_benchmark(chosen.device, chosen.out, chosen.only)))
    elif chosen.command == "gpu":
        from subspace_lib.press.gpu import PARTS, run_parts

        run_parts(chosen.parts or list(PARTS), chosen.out, chosen.tiny)
    elif chosen.command == "sweep":
        where = (chosen.device, chosen.jobs, chosen.dask, chosen.out, chosen.dirty)
        run_sweeps(chosen.experiments, chosen.profile, *where)
    elif chosen.command == "data":
        show_data()
    else:
        from subspace_lib.press import build, make

        if chosen.command == "colab":
            make.run_as_colab(build.ROOT)
        else:
            make.run_task(chosen.command, build.ROOT)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (a chapter or a run failed), 2 (bad input) or 130 (stopped)."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by whoever started us
                setattr(sys, name, io.StringIO())
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a path may hold what a console lacks
        run(read_arguments(arguments))
    except Unfinished as error:
        print(error, file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {error}; `pip install 'subspace_lib[book]'` brings what the commands need", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, MemoryError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
