"""One chapter: its parameters, its execution by papermill, and what is kept of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspace_lib.press.times import write_times

PARAMETERS = ("PROFILE",)
CELL_TIMEOUT = 3600


class BookError(Exception):
    """A chapter failed, or the pages did not build; the message says which one and why."""


@dataclass
class Run:
    """A chapter that is being executed."""

    name: str
    notebook: Path
    log: Path
    process: subprocess.Popen[bytes]
    started: float

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def check_parameters(chapter: Path) -> None:
    """Refuse a chapter without PROFILE: papermill would only warn, and the profile change nothing."""
    from papermill import inspect_notebook

    found = inspect_notebook(str(chapter))
    for parameter in PARAMETERS:
        if parameter not in found:
            raise ValueError(f"chapter {chapter.stem} has no cell tagged 'parameters' that sets {parameter}")


def start(chapter: Path, profile: str, environment: Mapping[str, str], folder: Path) -> Run:
    """Start papermill on a chapter, in a session of its own, so that a Ctrl-C reaches us and we end it."""
    notebook, log = folder / chapter.name, folder / f"{chapter.stem}.log"
    command = [sys.executable, "-m", "papermill", str(chapter), str(notebook), "--no-progress-bar"]
    command += ["-k", "python3", "--cwd", str(chapter.parent), "--execution-timeout", str(CELL_TIMEOUT)]
    command += ["-r", "PROFILE", profile]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Run(chapter.stem, notebook, log, process, time.monotonic())


def stop(running: Iterable[Run]) -> None:
    """End what still runs; papermill ends its kernel on the way."""
    for run in running:
        run.process.terminate()
    for run in running:
        try:
            run.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()


def keep(run: Run, executed: Path, record: Mapping[str, Any]) -> None:
    """Hide papermill's own cell, note what ran where, and put the notebook in its place."""
    notebook = read_notebook(run.notebook)
    for cell in notebook["cells"]:
        if is_injected(cell):
            cell["metadata"]["tags"].append("remove-cell")
    write_times(notebook, run.seconds, record["profile"], record["device"])
    notebook["metadata"]["subspace"] = dict(record)
    run.notebook.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")
    run.notebook.replace(executed / run.notebook.name)
    (executed / f"{run.name}.failed.ipynb").unlink(missing_ok=True)


def explain(run: Run, executed: Path) -> str:
    """Where and why a chapter failed, on three lines; its notebook is kept beside the good ones."""
    message = (run.log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
    if not run.notebook.exists():
        return f"  {message}"
    code = [cell for cell in read_notebook(run.notebook)["cells"] if cell["cell_type"] == "code"]
    where = "before its first cell"
    for number, cell in enumerate((cell for cell in code if not is_injected(cell)), start=1):
        if cell["metadata"].get("papermill", {}).get("status") in ("failed", "running"):
            where = f"code cell {number}: {''.join(cell['source']).strip().splitlines()[0]}"
            errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
            if errors:
                message = f"{errors[-1]['ename']}: {errors[-1]['evalue']}".splitlines()[0]
    kept = executed / f"{run.name}.failed.ipynb"
    run.notebook.replace(kept)
    return f"  {where}\n  {message}\n  the notebook as far as it came: {kept}"


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as plain dictionaries."""
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a notebook: {error}") from None
    return notebook


def is_injected(cell: Mapping[str, Any]) -> bool:
    """Whether papermill put the cell in to set the parameters."""
    return "injected-parameters" in cell["metadata"].get("tags", [])
