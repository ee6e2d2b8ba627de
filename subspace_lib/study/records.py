"""One run's specification and record, and the tables that chapters draw."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from subspace_lib.files import replaced_atomically

DATA = Path(__file__).resolve().parents[2] / "data"
VERSION = 1
COLUMNS = (
    "experiment", "dataset", "model", "D", "projection", "layout", "d", "seed", "lr", "epochs", "val_accuracy",
    "val_loss", "test_accuracy", "step_ms", "peak_bytes", "device", "torch", "commit", "date",
    "options", "model_options", "best_epoch", "epochs_run", "steps", "seconds", "diverged",
)  # fmt: skip
"""Columns of ``data/results/<experiment>.csv``."""

Record = dict[str, Any]


class DamagedRecordError(ValueError):
    """A record that is cut short, or was changed after it was written."""


class RecordVersionError(ValueError):
    """A record of another version of the library."""


@dataclass(frozen=True)
class Spec:
    """All that decides a run; equal specifications are the same run.

    Attributes
    ----------
    experiment : str
        The table that the run belongs to.
    dataset, model : str
        "mnist" or "cifar10"; "mlp", "lenet" or "small_lenet".
    d : int or None
        Dimension of the subspace; None is D, as in direct training.
    seed : int
        Seed of theta0 and of the order of the batches; P has one of its own that follows from it.
    lr, epochs, batch_size, patience
        As for ``fit``.
    projection : str
        A key of ``PROJECTIONS``, or "none" for direct training.
    options, model_options : dict
        Keywords of the projection and of the network.
    train_images, val_images : int or None
        How many images are used; None is all.
    """

    experiment: str
    dataset: str
    model: str
    d: int | None
    seed: int
    lr: float
    epochs: int
    projection: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    patience: int | None = None
    train_images: int | None = None
    val_images: int | None = None

    @property
    def key(self) -> str:
        """The name of the run: a hash of all its fields."""
        return _digest(asdict(self))[:16]


def write_record(path: Path, record: Record) -> None:
    """Write one record atomically, with its version and a checksum.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    sealed = {"version": VERSION} | record
    with replaced_atomically(path) as temporary:
        temporary.write_text(_canonical(sealed | {"checksum": _digest(sealed)}), encoding="utf-8")


def read_record(text: str, source: str) -> Record:
    """Read back one record.

    Raises
    ------
    DamagedRecordError
        If it is not whole, or was changed by hand; the message names ``source``.
    RecordVersionError
        If another version of the library wrote it.
    """
    try:
        sealed = json.loads(text)
        version, checksum = sealed["version"], sealed.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRecordError(f"{source} is not a whole record ({type(error).__name__})") from None
    if version != VERSION:
        raise RecordVersionError(
            f"{source} is a record of version {version!r}, and this library reads version {VERSION}; "
            "use the version that wrote it, or move the file away to run it again"
        )
    if checksum != _digest(sealed):
        raise DamagedRecordError(f"{source} was changed after it was written (its checksum does not fit)")
    record: Record = sealed
    return record


def read_records(folder: Path, table: Path) -> tuple[dict[str, Record], list[str]]:
    """All whole records of an experiment, by key, and what was wrong with the others.

    Hidden files, which somebody is writing, are let alone. A damaged file of ``folder`` is renamed to end in
    ``.damaged``; of a table with damaged lines a copy is kept under such a name.

    Raises
    ------
    RecordVersionError
        If another version of the library wrote one of them.
    """
    records: dict[str, Record] = {}
    damaged: list[str] = []
    for path in (table, *sorted(folder.glob("[!.]*.json"))):
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        whole = True
        for number, line in enumerate(text.splitlines() if path == table else [text], start=1):
            source = f"{path}, line {number}," if path == table else str(path)
            try:
                record = read_record(line, source)
                records[Spec(**record["spec"]).key] = record
            except DamagedRecordError as error:
                whole = False
                damaged.append(str(error))
        aside = path.with_name(path.name + ".damaged")
        if not whole and path == table:
            with replaced_atomically(aside) as temporary:
                temporary.write_text(text, encoding="utf-8")
        elif not whole:
            path.replace(aside)
    return records, damaged


def write_table(table: Path, records: Iterable[Record]) -> None:
    """Write records as lines of JSON, and beside them as the tidy table of ``COLUMNS``.

    Raises
    ------
    OSError
        If a file cannot be written; each is whole or as it was.
    """
    ordered = sorted(records, key=_order)
    with replaced_atomically(table) as temporary:
        lines = ({"version": VERSION} | record for record in ordered)
        text = "".join(_canonical(line | {"checksum": _digest(line)}) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
    with (
        replaced_atomically(table.with_suffix(".csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(record) for record in ordered)


def results(experiment: str, folder: Path = DATA / "results") -> list[dict[str, Any]]:
    """Our recorded full-size runs of one experiment, a dict a run; empty where there is no table yet.

    Numbers come as float; ``data/README.md`` names the columns.
    """
    path = folder / f"{experiment}.csv"
    return read_table(path) if path.exists() else []


def accuracy_over_d(experiment: str, folder: Path = DATA / "results") -> tuple[dict[int, list[float]], list[float]]:
    """Validation accuracies of an experiment's subspaces at each d, and of direct training, in the order of the seeds.

    Both are empty where there is no table yet; the experiment must be one of a single network and learning rate.
    """
    curve: dict[int, list[float]] = {}
    direct: list[float] = []
    for row in sorted(results(experiment, folder), key=lambda row: (row["d"], row["seed"])):
        at = direct if row["projection"] == "none" else curve.setdefault(int(row["d"]), [])
        at.append(row["val_accuracy"])
    return curve, direct


def curves(experiment: str, folder: Path = DATA / "results") -> list[Record]:
    """The same runs with their curves: dicts of ``spec`` and ``result``; empty where there is no table yet."""
    path = folder / f"{experiment}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [read_record(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1)]


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
    rows = read_table(folder / "published.csv")
    unknown = sorted(set(where) - set(rows[0]))
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r}; the table has: {', '.join(rows[0])}")
    return [row for row in rows if all(row[column] == value for column, value in where.items())]


def _row(record: Record) -> dict[str, Any]:
    spec, result = record["spec"], record["result"]
    known = {"layout": spec["options"].get("layout")} | spec | result
    known |= {name: json.dumps(spec[name], sort_keys=True) for name in ("options", "model_options") if spec[name]}
    return {column: known.get(column) if known.get(column) not in ({}, None) else "" for column in COLUMNS}


def _order(record: Record) -> tuple[Any, ...]:
    spec = record["spec"]
    options = json.dumps([spec["options"], spec["model_options"]], sort_keys=True)
    d = record["result"]["d"]
    return spec["dataset"], spec["model"], spec["projection"], d, options, spec["lr"], spec["seed"], Spec(**spec).key


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, a dict a row; what looks like a number is one."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{column: _number(text) for column, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
