"""Chapters executed side by side by papermill, each with its limit; what is kept of them, and why one failed."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from subspace_lib.files import write_text
from subspace_lib.press.chapters import PARAMETER, is_injected, read_notebook
from subspace_lib.press.times import write_times
from subspace_lib.processes import cleared, end, start, tied
from subspace_lib.projections.kernels import KERNELS, loaded

LIMIT = 3600.0
"""Seconds that a chapter may take."""


@dataclass
class Run:
    """A chapter that is being executed, and the files that this makes."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    limit: float
    started: float
    seconds: float = 0.0
    late: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended without all its outputs."""
        return self.late or self.process.returncode != 0

    def ended(self) -> bool:
        """Whether it is over, by itself or by us because it took too long."""
        self.seconds = time.monotonic() - self.started
        if self.process.poll() is None and self.seconds > self.limit:
            self.late = True
            end([self.process])
        return self.process.poll() is not None


@contextmanager
def running_folder(parent: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; what a switched-off machine left in ``parent`` is cleared by the next.

    What cannot be removed is named, and in nobody's way.
    """
    parent = parent.absolute()  # chapters run in another folder
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / ".running.lock"):
        for old in parent.glob("running-*"):
            try:
                with FileLock(old / "lock", timeout=0):
                    pass
            except Timeout:
                continue
            except OSError:  # another user's
                pass
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():
                print(f"{old} cannot be removed, and is in nobody's way; remove it by hand", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="running-", dir=parent))
        lock = FileLock(folder / "lock")
        lock.acquire()
    with cleared(folder):
        try:
            yield folder
        finally:
            lock.release()


def execute(
    names: Sequence[str],
    book: Path,
    folder: Path,
    *,
    profile: str,
    environment: Mapping[str, str],
    jobs: int,
    limit: float = LIMIT,
) -> Iterator[Run]:
    """Execute chapters in this order, ``jobs`` at a time, and give each as it ends; whatever happens, none runs on."""
    kernel = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = tied("ipykernel_launcher", "-f", "{connection_file}")
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"}))
    told = dict(environment)
    if loaded()[0] is None:  # which says so here, once, and on no page
        told = {KERNELS: "0"} | told
    temporary = Path(tempfile.mkdtemp(prefix="subspace-"))  # beside the others: paths of sockets have to be short
    told |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    told |= {"JUPYTER_PATH": str(folder / "jupyter"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    waiting, running = list(names), list[Run]()
    with cleared(temporary):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0), book, folder, profile, told, limit))
                time.sleep(0.1)
                for run in [run for run in running if run.ended()]:
                    running.remove(run)
                    yield run
        finally:
            end(run.process for run in running)


def _start(name: str, book: Path, folder: Path, profile: str, environment: Mapping[str, str], limit: float) -> Run:
    own = folder / "chapters" / name
    own.mkdir(parents=True)
    chapter = book / f"{name}.ipynb"
    paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (chapter, own / "executed.ipynb"))
    command = tied("papermill", *paths, "--no-progress-bar", "-k", "python3")  # which fills in what stands in braces
    command += ["--cwd", str(chapter.parent), "-r", PARAMETER, profile, "--start-timeout", str(math.ceil(limit))]
    told = {**environment, "SUBSPACE_LOADED": str(own / "loaded")}
    with (own / "log").open("wb") as output:
        process = start(command, told, output)
    return Run(name, own, process, limit, time.monotonic())


def keep(run: Run, executed: Path, record: Mapping[str, Any]) -> None:
    """Hide papermill's own cell, note what ran where and on which images, and put the notebook in its place."""
    notebook = read_notebook(run.folder / "executed.ipynb")
    for cell in notebook["cells"]:
        if is_injected(cell):
            cell["metadata"]["tags"].append("remove-cell")
    write_times(notebook, run.seconds, record["profile"], record["device"])
    loaded = run.folder / "loaded"
    names = set(loaded.read_text(encoding="utf-8").split()) if loaded.exists() else set()
    standins = sorted(name for name in names if name.endswith("-standin"))
    notebook["metadata"]["subspace"] = {**record, "seconds": round(run.seconds, 1), "standins": standins}
    write_text(executed / f"{run.name}.ipynb", json.dumps(notebook, indent=1, ensure_ascii=False))
    (executed / f"{run.name}.failed.ipynb").unlink(missing_ok=True)


def explain(run: Run, executed: Path) -> str:
    """Where and why a chapter failed, on three lines; its notebook is kept beside the good ones."""
    lines = (run.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    message = f"it took longer than its {run.limit:.0f} s" if run.late else (lines or ["no output"])[-1]
    try:
        cells = read_notebook(run.folder / "executed.ipynb")["cells"]
    except (OSError, ValueError):  # killed before it was written, or while
        return f"  {message}"
    code = [cell for cell in cells if cell["cell_type"] == "code" and not is_injected(cell)]
    noted = [cell["metadata"].get("papermill", {}) for cell in code]
    stopped = [number for number, note in enumerate(noted) if note.get("status") in ("failed", "running")]
    stopped = stopped or [number for number, note in enumerate(noted) if note.get("start_time")][-1:]  # kernel died
    where = "before its first cell"
    if stopped:
        cell = code[stopped[0]]
        where = f"code cell {stopped[0] + 1}: {(''.join(cell['source']).strip().splitlines() or [''])[0]}"
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        if errors and not run.late:
            message = f"{errors[-1]['ename']}: {errors[-1]['evalue']}".splitlines()[0]
    kept = executed / f"{run.name}.failed.ipynb"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(run.folder / "executed.ipynb", kept)
    return f"  {where}\n  {message}\n  the notebook as far as it came: {kept}"
