"""Kill sweeps and builds, again and again, and look what is lost, made twice or left behind.

    python tests/kill.py [--times 50] [--seed 0]

By hand: each try takes some seconds. Half of them kill `sweep`, half `execute`, at the smallest size, at a moment that
is drawn. Linux only, since it finds processes in /proc. It ends with 1 if anything was found.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "SUBSPACE_TRIAL"
UNTIL_GONE = 10.0  # seconds
EXPERIMENT, CHAPTER = "lr_small", "in_your_own_loop"
COMMANDS = {
    "sweep": ["sweep", EXPERIMENT, "--profile", "smoke", "--device", "cpu", "--jobs", "2"],
    "execute": ["execute", "--profile", "smoke", "--device", "cpu", "--only", CHAPTER],
}


class Trial:
    """One command over one folder, which is killed until it is left to end."""

    def __init__(self, what: str, folder: Path) -> None:
        self.what, self.out, self.temporary = what, folder / what, folder / f"{what}-temporary"
        self.temporary.mkdir()
        self.token = f"{what}-{os.getpid()}"
        self.kept: dict[Path, bytes] = {}
        self.faults: list[str] = []

    def start(self) -> subprocess.Popen[bytes]:
        """The command, in an environment by which all its children are known."""
        told = {TOKEN: self.token, "TMPDIR": str(self.temporary), "JOBLIB_TEMP_FOLDER": str(self.temporary)}
        command = [sys.executable, "-m", "subspace_lib", *COMMANDS[self.what], "--out", str(self.out)]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | told, stdout=quiet, stderr=quiet)

    def kill(self, after: float) -> None:
        """Start, kill after so many seconds, and look."""
        process = self.start()
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + UNTIL_GONE
        while (left := [*self.processes(), *self.folders()]) and time.monotonic() < end:
            time.sleep(0.1)
        self.faults += [f"{one} is left after {UNTIL_GONE:.0f} s" for one in left]
        self.look()

    def processes(self) -> list[str]:
        """Processes of this trial that live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"{TOKEN}={self.token}".encode() in (folder / "environ").read_bytes()
                state = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
                if ours and state != "Z":
                    found.append(f"process {folder.name} ({(folder / 'cmdline').read_bytes()[:200]!r})")
            except OSError:
                continue
        return found

    def folders(self) -> list[str]:
        """Temporary folders, but for the cache that PyTorch keeps on purpose."""
        found = (*self.temporary.iterdir(), *self.out.rglob("running-*"))
        return [str(path) for path in found if not path.name.startswith("torchinductor")]

    def look(self) -> None:
        """Whether what was there is there, as it was."""
        for path, content in self.kept.items():
            if not path.exists() or path.read_bytes() != content:
                self.faults.append(f"{path} was lost or made twice")
        finished = self.out.rglob("[!.]*.json") if self.what == "sweep" else self.out.rglob("*.ipynb")
        self.kept = {path: path.read_bytes() for path in finished}

    def finish(self) -> None:
        """Let it end, and count."""
        code = self.start().wait()
        self.look()
        lines = [line for table in self.out.rglob(f"{EXPERIMENT}.jsonl") for line in table.open(encoding="utf-8")]
        keys = {json.dumps(json.loads(line)["spec"], sort_keys=True) for line in lines}
        if code or len(keys) != len(lines) or not (len(self.kept) == len(lines) or self.what == "execute"):
            self.faults.append(f"code {code}; {len(self.kept)} files, {len(keys)} runs in {len(lines)} lines")
        if aside := [*self.out.rglob("*.damaged"), *self.out.rglob("*.failed*"), *self.out.rglob(".*.json")]:
            self.faults.append(f"set aside, or half written: {aside}")
        print(f"{self.what}: {len(self.kept)} files in the end, {len(lines)} lines", flush=True)


def main() -> None:
    """All tries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds after which a command is killed at most")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for what in COMMANDS:
            trial = Trial(what, Path(folder))
            for number in range(chosen.times // len(COMMANDS)):
                after = draw.uniform(0.1, chosen.longest)
                trial.kill(after)
                print(f"{what} {number + 1}: killed after {after:.1f} s, {len(trial.kept)} files", flush=True)
            trial.finish()
            faults += trial.faults
    print(*faults, f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
