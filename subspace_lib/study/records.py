"""One run's specification and record, and the tables that chapters draw."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from subspace_lib.files import read_text, replaced_atomically, write_text

_INSTALLED = Path(__file__).resolve().parents[1] / "recorded"
DATA = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "data"
"""Published figures and our recorded runs: ``data`` of the checkout, or what an installed library brings."""
VERSION = 1
RANGE = re.compile(r"[\d.]+-[\d.]+")


def _size(text: str) -> int | str:
    """A number of dimensions, or a range of them ("1000-1500") as it stands."""
    return text if RANGE.fullmatch(text) else int(text)


def _value(text: str) -> float | str:
    """A published number, or a range of numbers ("525-575") as it stands."""
    return text if RANGE.fullmatch(text) else float(text)


def _share(text: str) -> float:
    """A number between 0 and 1."""
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError
    return share


_TRUTH: Callable[[str], bool] = {"True": True, "False": False}.__getitem__
COLUMNS: dict[str, Callable[[str], Any]] = {
    "experiment": str, "dataset": str, "model": str, "D": _size, "projection": str, "layout": str, "d": _size,
    "seed": int, "lr": float, "epochs": int, "val_accuracy": _share, "val_loss": float, "test_accuracy": _share,
    "step_ms": float, "peak_bytes": int, "device": str, "torch": str, "commit": str, "date": str,
    "options": str, "model_options": str, "best_epoch": int, "epochs_run": int, "steps": int, "seconds": float,
    "diverged": _TRUTH,
}  # fmt: skip
"""Columns of ``data/results/<experiment>.csv``, and how each is read."""
OTHER_COLUMNS: dict[str, Callable[[str], Any]] = {
    "source": str, "steps_by": str, "quantity": str, "value": _value, "unit": str, "note": str,
    "part": str, "forward_ms": float, "adjoint_ms": float, "bytes_per_weight": float, "forward_bytes": int,
    "bandwidth_share": float, "direct_ms": float, "build_peak": float, "threads": int,
    "refused": str, "adjoint_share": float,
    "recorded": float, "runs": int, "tolerated": float, "within": _TRUTH,
    "graphs": _TRUTH,
    "images": int, "seconds_together": float, "seconds_alone": float, "times_the_runs_an_hour": float,
}  # fmt: skip
"""Columns that only the published figures, the benchmark and what a GPU measured have."""
PUBLISHED = ("source", "experiment", "dataset", "model", "D", "projection", "d", "quantity", "value", "unit", "note")
"""Columns of the figures from the literature."""
for _name in ("step", "graph", "triton", "triton_graph", "products"):  # what the benchmark times in turns
    OTHER_COLUMNS |= dict.fromkeys((f"{_name}_{column}" for column in ("direct_ms", "ms", "over_direct")), float)
    OTHER_COLUMNS |= {f"{_name}_low": float, f"{_name}_high": float, f"{_name}_refused": str}

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
        "mnist", "cifar10" or a task of ``starts.VARIANTS``; "mlp", "lenet", "small_lenet" or "efficientnet".
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", float(self.lr))  # 1 and 1.0 are the same run, under one name

    @property
    def key(self) -> str:
        """The name of the run: a hash of all its fields."""
        return _digest(asdict(self))[:16]


KINDS: dict[str, dict[str, Any]] = {
    "spec": {
        "experiment": str, "dataset": str, "model": str, "d": (int, NoneType), "seed": int, "lr": (int, float),
        "epochs": int, "projection": str, "options": dict, "model_options": dict, "batch_size": int,
        "patience": (int, NoneType), "train_images": (int, NoneType), "val_images": (int, NoneType),
    },
    "result": {
        "D": int, "d": int, "dataset": str, "device": str, "torch": str, "commit": str, "date": str, "diverged": bool,
        "val_loss_curve": list, "val_accuracy_curve": list, "train_loss": list, "best_epoch": int, "epochs_run": int,
        "steps": int, "peak_bytes": (int, NoneType), "seconds": (int, float),
    } | dict.fromkeys(("val_accuracy", "val_loss", "test_accuracy", "step_ms"), (int, float, NoneType)),
}  # fmt: skip
"""What a record holds, and of which type."""


def write_record(path: Path, record: Record) -> None:
    """Write one record atomically, with its version and a checksum.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    sealed = {"version": VERSION} | record
    write_text(path, _canonical(sealed | {"checksum": _digest(sealed)}))


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRecordError(f"{source} is not a whole record ({type(error).__name__})") from None
    if version != VERSION:
        raise RecordVersionError(
            f"{source} is a record of version {version!r}, and this library reads version {VERSION}; "
            "use the version that wrote it, or move the file away to run it again"
        )
    if checksum != _digest(sealed):
        raise DamagedRecordError(f"{source} was changed after it was written (its checksum does not fit)")
    if fault := _fault(sealed):
        raise DamagedRecordError(f"{source} {fault}")
    record: Record = sealed
    return record


def _fault(record: Record) -> str:
    """What a record lacks, or has of the wrong kind; empty if nothing."""
    for part, kinds in KINDS.items():
        if not isinstance(record.get(part), dict):
            return f"has no {part!r}"
        for name, kind in kinds.items():
            if name not in record[part]:
                return f"lacks {name!r} in {part!r}"
            value = record[part][name]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not _is_plain(value):
                return f"has {value!r} as {name!r} in {part!r}"
    if unknown := set(record["spec"]) - set(KINDS["spec"]):
        return f"has {min(unknown)!r} in 'spec', which no run has"
    result = record["result"]
    if not 1 <= result["d"] <= result["D"]:
        return f"has {result['d']} dimensions of {result['D']}"
    for name in ("val_accuracy", "test_accuracy"):
        if not 0 <= (result[name] or 0) <= 1:
            return f"has {result[name]} as {name!r}"
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        return "holds a number that is not finite"
    return ""


def _is_plain(value: Any) -> bool:
    """Whether a table can hold it: text that can be written down, finite numbers of a machine, and lists of these."""
    if isinstance(value, list):
        return all(one is None or (type(one) in (int, float) and _is_plain(one)) for one in value)
    if isinstance(value, str):
        return value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 2**63


def read_records(folder: Path | None, *tables: Path) -> tuple[dict[str, Record], list[str]]:
    """All whole records of an experiment, by key, and what was wrong with the others.

    Hidden files, which somebody is writing, are let alone. A file of ``folder`` that is damaged, or bears the name of
    another run, is renamed to end in ``.damaged``; of a table with damaged lines a copy is kept under such a name.

    Raises
    ------
    RecordVersionError
        If another version of the library wrote one of them.
    """
    records: dict[str, Record] = {}
    damaged: list[str] = []
    single = sorted(folder.glob("[!.]*.json")) if folder else []
    for path in (*tables, *single):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        whole = True
        for number, line in enumerate(text.splitlines() if path in tables else [text], start=1):
            source = f"{path}, line {number}," if path in tables else str(path)
            try:
                record = read_record(line, source)
                key = Spec(**record["spec"]).key
                if path not in tables and key != path.stem:
                    raise DamagedRecordError(f"{path} is the record of another run, {key}")
                records[key] = record
            except DamagedRecordError as error:
                whole = False
                damaged.append(str(error))
        aside = path.with_name(path.name + ".damaged")
        if not whole and path in tables:
            write_text(aside, text)
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

    Numbers come as numbers, None where there is none; ``data/README.md`` names the columns.
    """
    path = folder / f"{experiment}.csv"
    whole = path.with_suffix(".jsonl").exists()  # as write_table leaves them
    return read_table(path, COLUMNS if whole else ()) if path.exists() else []


def accuracy_over_d(experiment: str, folder: Path = DATA / "results") -> tuple[dict[int, list[float]], list[float]]:
    """Validation accuracies of an experiment's subspaces at each d, and of direct training, in the order of the seeds.

    Both are empty where there is no table yet; the experiment must be one of a single network, at each d of one rate.
    """
    curve: dict[int, list[float]] = {}
    direct: list[float] = []
    for row in sorted(results(experiment, folder), key=lambda row: (row["d"], row["seed"])):
        at = direct if row["projection"] == "none" else curve.setdefault(int(row["d"]), [])
        at.append(row["val_accuracy"])
    return curve, direct


def loss_of(row: dict[str, Any]) -> float:
    """The validation loss of a recorded run; infinite if it diverged."""
    return math.inf if row["val_loss"] is None else float(row["val_loss"])


def at_best_rate(experiment: str, folder: Path = DATA / "results") -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Runs by data set, options of the network and d, each at the rate of its lowest validation loss on seed 0.

    For experiments that try several rates at every point. A point whose best rate is the lowest or the highest of those
    recorded is left out: its list is too short, or not whole yet. Empty where there is no table yet.
    """
    points: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in results(experiment, folder):
        points.setdefault((row["dataset"], row["model_options"], row["d"]), []).append(row)
    found = {}
    for point, rows in points.items():
        losses = {row["lr"]: loss_of(row) for row in rows if row["seed"] == 0}
        best = min(losses, key=losses.__getitem__, default=math.inf)
        if min(losses, default=best) < best < max(losses, default=best):
            found[point] = sorted((row for row in rows if row["lr"] == best), key=lambda row: row["seed"])
    return found


def curves(experiment: str, folder: Path = DATA / "results") -> list[Record]:
    """The same runs with their curves: dicts of ``spec`` and ``result``; empty where there is no table yet."""
    path = folder / f"{experiment}.jsonl"
    lines = read_text(path).splitlines() if path.exists() else []
    return [read_record(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1)]


def published(folder: Path = DATA / "published", **where: str | float) -> list[dict[str, Any]]:
    """Figures quoted from the literature, a dict a figure, those whose columns equal ``where``.

    Raises
    ------
    ValueError
        If ``where`` names a column that the table does not have.

    Examples
    --------
    >>> points = published(source="minut2023", experiment="fig3")
    """
    rows = read_table(folder / "published.csv", PUBLISHED)
    if unknown := sorted(set(where) - set(PUBLISHED)):
        raise ValueError(f"unknown column {unknown[0]!r}; the table has: {', '.join(PUBLISHED)}")
    wanted = {c: _typed(c, value) if isinstance(value, str) else value for c, value in where.items()}
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


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


def read_table(path: Path, needed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The rows of a table, a dict a row, each column of the type that is declared for it.

    Raises
    ------
    ValueError
        If a column is unknown, stands there twice or is ``needed`` and missing, a cell does not hold what its column
        holds, or a line is too short or too long, or stands there twice.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it, too
        reader = csv.DictReader(file)
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        try:
            columns = list(reader.fieldnames or [])
            if not columns or (missing := [column for column in needed if column not in columns]):
                raise ValueError(f"it has no column {missing[0]!r}" if columns else "it is empty")
            if twice := [column for column in columns if columns.count(column) > 1]:
                raise ValueError(f"it has two columns {twice[0]!r}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has more or fewer cells than the line of the columns")
                if (cells := tuple(row.values())) in rows:
                    raise ValueError(f"line {reader.line_num} stands there twice")
                rows[cells] = {column: _typed(column, text) for column, text in row.items()}
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    return list(rows.values())


def _typed(column: str, text: str) -> Any:
    read = COLUMNS.get(column) or OTHER_COLUMNS.get(column)
    if read is None:
        raise ValueError(f"unknown column {column!r}")
    if not text:
        return "" if read is str else None
    try:
        value = read(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} was found in column {column!r}") from None
    return value
