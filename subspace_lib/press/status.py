"""What ran where, and the chapters to take away: the tables of the page `status`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subspace_lib.files import write_text
from subspace_lib.press.chapters import is_record, record_of
from subspace_lib.study.findings import standing

Executions = dict[str, dict[str, Any]]
HEADER = """
| chapter | seconds | profile | device | date | commit |
| --- | ---: | --- | --- | --- | --- |
"""
DOWNLOADS = """
| chapter | as it is written | as it was executed |
| --- | --- | --- |
"""
CLEAN = "notebooks"
"""Folder beside the executed chapters with the same chapters as they are in the repository, without outputs."""


def write_executions(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Add those of these records that are of the full size on a GPU to a file that the repository keeps.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    new = {
        name: {key: value for key, value in record.items() if key != "digest"}
        for name, record in records.items()
        if record["profile"] == "full" and record["device"] != "cpu"
    }
    if new:
        write_text(path, json.dumps(recorded_executions(path) | new, indent=1) + "\n")


def recorded_executions(path: Path) -> Executions:
    """What ``write_executions`` wrote; empty where there is nothing yet.

    Raises
    ------
    ValueError
        If the file holds anything else; the message names it.
    """
    if not path.exists():
        return {}
    try:
        found: Executions = json.loads(path.read_text(encoding="utf-8"))
        if all(map(is_record, found.values())):
            return found
    except (ValueError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path} does not hold records of executions; move it away, or take it from the repository again")


def status_tables(executed: Path, names: Iterable[str], gpu: Path) -> str:
    """Tables in Markdown: what ran in this build, and in the last full-size one on a GPU; downloads; recorded runs.

    Parameters
    ----------
    executed : Path
        Folder of the executed chapters.
    names : iterable of str
        The chapters in their order.
    gpu : Path
        The file of ``write_executions``; it need not exist.
    """
    names = list(names)
    last = {name: record for name, record in recorded_executions(gpu).items() if name in names}
    files = "".join(
        f"| []({name}.ipynb) | {{download}}`to run <{CLEAN}/{name}.ipynb>` | {{download}}`results <{name}.ipynb>` |\n"
        for name in names
    )
    return (
        f"\n## This build\n{_table({name: record_of(executed, name) for name in names})}"
        f"\n## The last build on a GPU\n{_table(last) if last else GPU_NONE}"
        f"\n## Notebooks to take away\n{DOWNLOADS}{files}"
        f"\n## Recorded runs\n{RUNS}\n{standing()}"
    )


RUNS = """
**Full-size runs** that the chapters read, by experiment. *Of changed code* are those whose exact code is in no commit;
*still to run* those that the rules for learning rates ask for by now.
"""
GPU_NONE = "\nNo GPU has executed the book yet.\n"


def _table(executions: Mapping[str, Mapping[str, Any] | None]) -> str:
    lines = "".join(_line(name, record) for name, record in executions.items())
    known = [record["versions"] for record in executions.values() if record]
    versions = {", ".join(f"{name} {version}" for name, version in each.items()) for each in known}
    return f"{HEADER}{lines}\n" + (f"Executed with {'; or '.join(sorted(versions))}.\n" if versions else "")


def _line(name: str, record: Mapping[str, Any] | None) -> str:
    if record is None:
        return f"| []({name}.ipynb) | | not executed | | | |\n"
    profile = record["profile"] + (" (stand-in images)" if record["standins"] else "")
    date = record["date"].split("T")[0]
    cells = (f"[]({name}.ipynb)", f"{record['seconds']:.0f}", profile, record["device"], date)
    return f"| {' | '.join(cells)} | {record['commit']} |\n"
