"""What ran where, and the chapters to take away: the tables of the page `status`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subspace_lib.files import replaced_atomically
from subspace_lib.press.chapters import read_notebook

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


def write_executions(path: Path, executed: Path, names: Iterable[str]) -> None:
    """Write what ran where of these chapters to a file that the repository keeps.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with replaced_atomically(path) as temporary:
        temporary.write_text(json.dumps(_executions(executed, names), indent=1) + "\n", encoding="utf-8")


def status_tables(executed: Path, names: Iterable[str], gpu: Path) -> str:
    """Three tables in Markdown: what ran in this build, what ran in the last full-size build on a GPU, and downloads.

    Parameters
    ----------
    executed : Path
        Folder of the executed chapters.
    names : iterable of str
        The chapters in their order.
    gpu : Path
        The file of ``write_executions``; it need not exist.
    """
    recorded = json.loads(gpu.read_text(encoding="utf-8")) if gpu.exists() else {}
    last = _table(recorded) if recorded else "\nNo GPU has executed the book yet.\n"
    files = "".join(
        f"| []({name}.ipynb) | {{download}}`to run <{CLEAN}/{name}.ipynb>` | {{download}}`results <{name}.ipynb>` |\n"
        for name in names
    )
    return (
        f"\n## This build\n{_table(_executions(executed, names))}\n## The last build on a GPU\n{last}"
        f"\n## Notebooks to take away\n{DOWNLOADS}{files}"
    )


def _executions(executed: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {name: read_notebook(executed / f"{name}.ipynb")["metadata"]["subspace"] for name in names}
    return {name: {key: value for key, value in record.items() if key != "digest"} for name, record in found.items()}


def _table(executions: Mapping[str, Mapping[str, Any]]) -> str:
    lines = "".join(_line(name, record) for name, record in executions.items())
    versions = {", ".join(f"{name} {version}" for name, version in r["versions"].items()) for r in executions.values()}
    return f"{HEADER}{lines}\nExecuted with {'; or '.join(sorted(versions))}.\n"


def _line(name: str, record: Mapping[str, Any]) -> str:
    profile = record["profile"] + (" (stand-in images)" if record["standins"] else "")
    date = record["date"].split("T")[0]
    cells = (f"[]({name}.ipynb)", f"{record['seconds']:.0f}", profile, record["device"], date)
    return f"| {' | '.join(cells)} | {record['commit']} |\n"
