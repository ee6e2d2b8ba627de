"""Kill sweeps and builds, again and again, and look what is lost, made twice or left behind.

    python tests/kill.py [--times 50] [--seed 0]

By hand: each try takes some seconds. Half of them kill a sweep at the smallest size, half the build of a book of small
chapters: once a drawn number of runs or chapters more is finished, and a drawn time later. What is whole begins anew.
Linux only, since it finds processes in /proc. It ends with 1 if anything was found.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from test_book import make_root

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "SUBSPACE_TRIAL"
UNTIL_GONE = 10.0  # seconds
EXPERIMENT, RUNS, CHAPTERS = "lr_small", 60, 10
CHAPTER = """
import tempfile, time, numpy
tempfile.mkdtemp()
time.sleep(0.5)
print(numpy.linalg.matrix_rank(numpy.ones((300, 300))), "is the rank")
"""
BUILD = """
import sys
from pathlib import Path
from subspace_lib.press import build
build.find_standins = list
build.build_book("smoke", "cpu", jobs=2, root=Path(sys.argv[1]))
"""


class Trial:
    """One command over one folder, which is killed until it is left to end."""

    whole: int
    """How many files there are in the end."""

    def __init__(self, folder: Path) -> None:
        self.out, self.temporary = folder / "out", folder / "temporary"
        self.temporary.mkdir(parents=True)
        self.token = f"{folder.name}-{os.getpid()}"
        self.kept: dict[Path, bytes] = {}
        self.faults: list[str] = []

    def command(self) -> list[str]:
        """What Python is to run."""
        raise NotImplementedError

    def finished(self) -> list[Path]:
        """The files that are whole and stay."""
        raise NotImplementedError

    def start(self) -> subprocess.Popen[bytes]:
        """The command, in an environment by which all its children are known."""
        told = {TOKEN: self.token, "TMPDIR": str(self.temporary), "JOBLIB_TEMP_FOLDER": str(self.temporary)}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, *self.command()], cwd=ROOT, env=os.environ | told, stdout=quiet, stderr=quiet
        )

    def kill(self, more: int, after: float) -> bool:
        """Kill it once so many files more are finished, and so many seconds later, and look; whether it still ran."""
        process, wanted = self.start(), min(len(self.kept) + more, self.whole)
        while process.poll() is None and len(self.finished()) < wanted:
            time.sleep(0.02)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        end = time.monotonic() + UNTIL_GONE
        while (left := [*self.processes(), *self.folders()]) and time.monotonic() < end:
            time.sleep(0.1)
        self.faults += [f"{one} is left after {UNTIL_GONE:.0f} s" for one in left]
        self.look()
        return code < 0

    def processes(self) -> list[str]:
        """Processes of this trial that live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"{TOKEN}={self.token}".encode() in (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
                if ours and state != "Z":
                    found.append(f"process {folder.name} ({(folder / 'cmdline').read_bytes()[:200]!r})")
            except OSError:
                continue
        return found

    def folders(self) -> list[str]:
        """Temporary folders, but for the cache that PyTorch keeps on purpose."""
        build = self.out / "_build"
        found = (*self.temporary.iterdir(), *build.glob("running-*"), *build.glob("executed/running-*"))
        return [str(path) for path in found if not path.name.startswith("torchinductor")]

    def look(self) -> None:
        """Whether what was there is there, as it was."""
        for path, content in self.kept.items():
            if not path.exists() or path.read_bytes() != content:
                self.faults.append(f"{path} was lost or made twice")
        self.kept = {path: path.read_bytes() for path in self.finished()}

    def finish(self) -> list[str]:
        """Let it end, and look once more; all that was found."""
        code = self.start().wait()
        self.look()
        self.faults += self.in_the_end()
        if code or len(self.kept) != self.whole:
            self.faults.append(f"code {code}; {len(self.kept)} of {self.whole} files")
        if aside := [*self.out.rglob("*.damaged"), *self.out.rglob("*.failed*"), *self.out.rglob(".*.json")]:
            self.faults.append(f"set aside, or half written: {aside}")
        return self.faults

    def in_the_end(self) -> list[str]:
        """What is wrong with what was made of the files."""
        raise NotImplementedError


class Sweep(Trial):
    """Runs, a record each, and their table."""

    whole = RUNS

    def command(self) -> list[str]:
        """A sweep at the smallest size."""
        size = ("--profile", "smoke", "--device", "cpu", "--jobs", "2")
        return ["-m", "subspace_lib", "sweep", EXPERIMENT, *size, "--out", str(self.out)]

    def finished(self) -> list[Path]:
        """Records."""
        return list(self.out.rglob("[!.]*.json"))

    def in_the_end(self) -> list[str]:
        """Each run has one line."""
        lines = [line for table in self.out.rglob(f"{EXPERIMENT}.jsonl") for line in table.open(encoding="utf-8")]
        keys = {json.dumps(json.loads(line)["spec"], sort_keys=True) for line in lines}
        return [] if len(keys) == len(lines) == RUNS else [f"{len(keys)} runs in {len(lines)} lines"]


class Build(Trial):
    """Chapters, an executed notebook each, and their pages."""

    whole = CHAPTERS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_root(self.out, **{f"chapter{number}": f"{CHAPTER}  # {number}" for number in range(CHAPTERS)})

    def command(self) -> list[str]:
        """A build of a small book."""
        return ["-c", BUILD, str(self.out)]

    def finished(self) -> list[Path]:
        """Executed notebooks."""
        return list((self.out / "_build" / "executed").glob("[!.]*.ipynb"))

    def in_the_end(self) -> list[str]:
        """Each chapter has a page with what it printed."""
        pages = [self.out / "_build" / "html" / f"{path.stem}.html" for path in self.kept]
        shown = [path for path in pages if path.exists() and "1 is the rank" in path.read_text(encoding="utf-8")]
        return [] if len(shown) == CHAPTERS else [f"{len(shown)} pages"]


def kill(make: Callable[[Path], Trial], times: int, draw: random.Random, folder: Path) -> list[str]:
    """Kill commands of this kind so many times; all that was found."""
    faults: list[str] = []
    killed = amid = rounds = 0
    trial = make(folder / f"{make.__name__}-0")
    while killed < times:
        more = draw.randint(0, 3)
        after = draw.uniform(0.0, 1.0 if len(trial.kept) + more < trial.whole and more else 10.0)
        lives = trial.kill(more, after)
        killed, amid = killed + lives, amid + (lives and 0 < len(trial.kept) < trial.whole)
        said = "killed" if lives else "ended by itself"
        print(f"{make.__name__} {killed}: {said}, {len(trial.kept)} of {trial.whole} finished", flush=True)
        if not lives or len(trial.kept) == trial.whole or killed == times:
            faults += trial.finish()
            rounds += 1
            trial = make(folder / f"{make.__name__}-{rounds}")
    print(f"{make.__name__}: {killed} kills, {amid} of them with a part finished; {rounds} made whole", flush=True)
    return faults


def main() -> None:
    """All tries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        faults = [fault for make in (Build, Sweep) for fault in kill(make, chosen.times // 2, draw, Path(folder))]
    print(*faults, f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
