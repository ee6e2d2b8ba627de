"""The tables that chapters draw beside their live runs: ours, and those quoted from the literature."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "data"


def results(experiment: str, folder: Path = DATA / "results") -> list[dict[str, Any]]:
    """Our recorded full-size runs of one experiment, a dict a run; empty where there is no table yet.

    Numbers come as float; ``data/results/README.md`` names the columns.
    """
    path = folder / f"{experiment}.csv"
    return _read(path) if path.exists() else []


def published(folder: Path = DATA / "published", **where: str) -> list[dict[str, Any]]:
    """Figures quoted from the literature, a dict a figure, those whose columns equal ``where``.

    Raises
    ------
    ValueError
        If ``where`` names a column that the table does not have.

    Examples
    --------
    >>> points = published(source="minut2023", experiment="fig3")
    """
    rows = _read(folder / "published.csv")
    unknown = sorted(set(where) - set(rows[0]))
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r}; the table has: {', '.join(rows[0])}")
    return [row for row in rows if all(row[column] == value for column, value in where.items())]


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{column: _number(text) for column, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
