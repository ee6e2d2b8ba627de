"""What ran where, and the chapters to take away: the tables of the page `status`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subspace_lib.files import write_text
from subspace_lib.press.chapters import is_record, record_of
from subspace_lib.study.findings import standing
from subspace_lib.study.records import results

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
        f"| [](<{name}.ipynb>) | {{download}}`to run <{CLEAN}/{name}.ipynb>` | {{download}}`results <{name}.ipynb>` |\n"
        for name in names
    )
    return (
        f"\n## This build\n{_table({name: record_of(executed, name) for name in names})}"
        f"\n## The last build on a GPU\n{_table(last) if last else GPU_NONE}"
        f"{_measured()}"
        f"\n## Notebooks to take away\n{DOWNLOADS}{files}"
        f"\n## Recorded runs\n{RUNS}\n{standing()}"
    )


RUNS = """
**Full-size runs** that the chapters read, by experiment. *Of changed code* are those whose exact code is in no commit;
*still to run* those that the rules for learning rates ask for by now.
"""
COMPARED = """
**The same runs on a GPU**: one run at each of some dimensions beside the mean of those recorded on a CPU. A GPU adds in
another order, so a run parts from its twin; it is *within* if it lies as near to that mean as another seed on the CPU
would: within three standard deviations.

| experiment | d | on the GPU | recorded | of runs | tolerated | within |
| :-- | --: | --: | --: | --: | --: | :-- |
"""
MANY = """
**`fit_many` on a GPU**: LeNets in subspaces trained side by side, over the same number one after another; their
steps replayed as CUDA graphs, as by default, or launched one by one, as those one after another are.

| runs | graphs | seconds together | seconds alone | times the runs an hour |
| --: | :-- | --: | --: | --: |
"""
GPU_NONE = "\nNo GPU has executed the book yet.\n"


def _measured() -> str:
    """What a GPU measured beside the chapters: runs of a CPU again, and many at once."""
    text = ""
    for name, heading, columns in (
        ("compared_cuda", COMPARED, ("experiment", "d", "val_accuracy", "recorded", "runs", "tolerated", "within")),
        ("many_cuda", MANY, ("runs", "graphs", "seconds_together", "seconds_alone", "times_the_runs_an_hour")),
    ):
        if rows := results(name):
            cells = zip(*(_words([row.get(column, False) for row in rows]) for column in columns), strict=True)
            text += heading + "".join(f"| {' | '.join(line)} |\n" for line in cells)
            text += f"\nMeasured on one {rows[0]['device']}.\n"
    return f"\n## Measured on a GPU\n{text}" if text else ""


def _words(column: Sequence[Any]) -> list[str]:
    """The cells of a column; its fractions all with as many digits as the longest."""
    places = max(len(str(value).partition(".")[2]) for value in column)
    return [_word(value, places) for value in column]


def _word(value: Any, places: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{places}f}"
    return "directly" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _table(executions: Mapping[str, Mapping[str, Any] | None]) -> str:
    lines = "".join(_line(name, record) for name, record in executions.items())
    known = [record["versions"] for record in executions.values() if record]
    versions = {", ".join(f"{name} {version}" for name, version in each.items()) for each in known}
    return f"{HEADER}{lines}\n" + (f"Executed with {'; or '.join(sorted(versions))}.\n" if versions else "")


def _line(name: str, record: Mapping[str, Any] | None) -> str:
    if record is None:
        return f"| [](<{name}.ipynb>) | | not executed | | | |\n"
    profile = record["profile"] + (" (stand-in images)" if record["standins"] else "")
    date = f'<span class="kept">{record["date"].split("T")[0]}</span>'
    cells = (f"[](<{name}.ipynb>)", f"{record['seconds']:.0f}", profile, record["device"], date)
    return f"| {' | '.join(cells)} | {record['commit']} |\n"
