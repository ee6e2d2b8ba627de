"""The study, experiment by experiment: which runs each figure is made of."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from subspace_lib.study.records import DATA, Spec, loss_of, published, results
from subspace_lib.study.restated import RESTATED
from subspace_lib.subspace import count_parameters
from subspace_lib.tasks.models import SmallLeNet
from subspace_lib.tasks.profiles import Profile

STUDY_RATE = 1e-3
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHORT_EPOCHS = 8
TASKS = {"f1": ("mnist", "mlp"), "f2": ("cifar10", "mlp"), "f3": ("mnist", "lenet"), "f4": ("cifar10", "lenet")}
DIMENSIONS = {
    "f1": (50, 100, 200, 300, 400, 500, 600, 750, 850, 1000, 1200, 1500, 2500, 5000, 10_000),
    "f2": (150, 500, 750, 1500, 3000, 4750, 5000, 8000, 12_000),
    "f3": (125, 150, 250, 350, 450, 600, 700, 750, 1000, 2000),
    "f4": (100, 300, 750, 2000, 3500, 6000, 9000, 17_000),
}
TUNING: dict[str, dict[int | None, tuple[float, ...]]] = {
    "f1": {None: (1e-4, 3e-4, 1e-3, 3e-3), 300: RATES[1:], 1500: RATES[1:], 4000: RATES, 10_000: RATES},
    "f2": {None: (3e-5, 1e-4, 3e-4, 1e-3), 750: (*RATES[1:], 3e-1), 5000: RATES[:4], 12_000: RATES[:4]},
    "f3": {None: (3e-4, 1e-3, 3e-3), 150: RATES[2:], 300: RATES[2:], 750: RATES[2:], 2000: RATES[1:], 6000: RATES[:3]},
    "f4": {None: (3e-4, 1e-3, 3e-3, 1e-2), 300: (*RATES[2:], 3e-1), 750: RATES[1:4], 3500: RATES[1:], 6000: RATES[:3]},
}
"""The rates that are tried for each task, so many that the best is inside: for direct training (None), and for d from
small to large, with one between where the best rates of two that are far apart differ. All are tried in whole runs:
short ones favour high rates."""
SMALL_TUNING = {425: RATES[:4], 1225: (3e-4, *RATES[:4]), 3535: RATES[:4]}
"""The rates that are tried for small networks, by the middles, on a scale of log D, of three size classes."""
TIE = 0.01
"""Rates whose validation losses differ by at most this share are tied: by twice as much two seeds differ, in the
median."""
AROUND = {
    "f1": (500, 600, 750),
    "f2": (3000, 4750, 5000, 8000, 12_000),
    "f3": (150, 250),
    "f4": (300, 750, 2000, 3500, 6000),
}
"""The dimensions on both sides of 90% of either baseline: they have seeds enough for an interval."""
EXTRA_SEEDS = 2
FINE_TUNING: dict[int | None, tuple[float, ...]] = {
    20: (3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0),
    50: (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    200: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    1000: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    5000: (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    None: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
"""The rates that fine-tuning tries at each d (None: all weights), the same from every start."""
Point = tuple[dict[str, Any], int | None, tuple[float, ...]]
"""Options of a network, d (None: all that they leave free), and the rates that seed 0 tries there."""
_IMAGENET: dict[str, Any] = {"start": "imagenet", "norm": "frozen"}
_FACTORS: dict[str, Any] = {"adapter": {"kind": "lora", "rank": 4}}
NETWORK: tuple[Point, ...] = (
    (_IMAGENET, 200, (3e-2, 1e-1, 3e-1, 1.0)),
    (_IMAGENET, 1000, (3e-2, 1e-1, 3e-1)),
    (_IMAGENET, 5000, (1e-2, 3e-2, 1e-1)),
    (_IMAGENET, None, (1e-4, 3e-4, 1e-3)),
    (_IMAGENET | _FACTORS, 1000, (3e-2, 1e-1, 3e-1)),
    ({"start": "random", "norm": "batch"}, None, (3e-4, 1e-3, 3e-3, 1e-2)),
    ({"start": "random", "norm": "batch"}, 1000, (1e-1, 3e-1, 1.0)),
    (_IMAGENET | _FACTORS, 200, (1e-1, 3e-1, 1.0)),
    (_IMAGENET | {"adapter": {"kind": "lora_xs", "rank": 5}}, None, (3e-3, 1e-2, 3e-2)),
    ({"start": "imagenet", "norm": "batch"}, 1000, (3e-2, 1e-1, 3e-1, 1.0)),
)
"""Where the large network is tried."""
_DIGITS: dict[str, Any] = {"start": "digits"}
ADAPTED: tuple[Point, ...] = (
    (_DIGITS, 200, (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    (_DIGITS | _FACTORS, 200, (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    (_DIGITS | {"adapter": {"kind": "lora_xs", "rank": 10}}, None, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    (_DIGITS | {"adapter": {"kind": "lora_held", "rank": 1}}, None, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    (_DIGITS | {"adapter": {"kind": "vera", "rank": 5}}, None, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    (_DIGITS, 1194, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    (_DIGITS | _FACTORS, 1194, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    (_DIGITS | {"adapter": {"kind": "lora", "rank": 1}}, None, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
)
"""Adapters on the network of digits: at about 200 trained numbers, and at the 1,194 that LoRA takes at least."""
FEW_DIGITS: dict[str, Any] = {
    "model": "mlp", "train_images": 1000, "val_images": 2000, "epochs": 30, "patience": 6, "batch_size": 50,
}  # fmt: skip
FEW_PHOTOGRAPHS: dict[str, Any] = {
    "model": "efficientnet", "train_images": 1000, "val_images": 500, "epochs": 4, "patience": None, "batch_size": 50,
}  # fmt: skip
"""How the networks of fine-tuning are trained."""
FACTORED_RANKS = [
    [[140, 32], [10, 2]],
    [[25, 160], [10, 50]],
    [[10, 400], [10, 50]],
    [[100, 25], [10, 200]],
    [[25, 100], [10, 200]],
    [[10, 250], [10, 200]],
    [[5, 500], [10, 200]],
    [[2, 1250], [10, 200]],
]
"""Columns of A and B in the hidden layer (200 x 2,353) and in the output layer (10 x 201), d = 4,500 in all."""
CONTROLS = ("mnist/shifted", "mnist/inverted", "cifar10/grey")
"""The tasks that a network of digits does not nearly solve."""


def experiment(name: str, profile: Profile, folder: Path = DATA / "results") -> list[Spec]:
    """The runs of one experiment, seed by seed, so that a sweep that is cut short has whole curves.

    Parameters
    ----------
    name : str
        A key of ``EXPERIMENTS``.
    profile : Profile
        How many images, epochs and seeds.
    folder : Path
        Where the table of learning rates is.

    Raises
    ------
    ValueError
        If there is no such experiment, or the learning rates have not been chosen yet.
    """
    check_names([name])
    settings = list(EXPERIMENTS[name](name, folder))
    common: dict[str, Any] = {
        "experiment": name,
        "epochs": profile.epochs,
        "patience": profile.patience,
        "train_images": profile.train_images,
        "val_images": profile.val_images,
    }
    counts = [setting.pop("seeds", profile.seeds) + setting.pop("extra_seeds", 0) for setting in settings]
    return [
        Spec(**(common | setting | {"seed": seed}))
        for seed in range(max(counts))
        for setting, count in zip(settings, counts, strict=True)
        if seed < count
    ]


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no experiment.

    Raises
    ------
    ValueError
        If a name is none of ``EXPERIMENTS``.
    """
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(f"unknown experiment {unknown[0]!r}; choose one of: {', '.join(EXPERIMENTS)}")


def chosen_rate(dataset: str, model: str, projected: bool, folder: Path = DATA / "results", size: int = 1) -> float:
    """The learning rate of a task, by the mean validation loss of its runs in "lr", for small networks "lr_small".

    It is the ``best_rate`` at the nearest size tried, on a scale of log d.

    Parameters
    ----------
    dataset, model : str
        As in ``Spec``.
    projected : bool
        Whether a subspace is trained, or all weights.
    folder : Path
        Where the tables are.
    size : int
        d of a subspace, D of a small network; direct training has one size only.

    Raises
    ------
    ValueError
        As ``rates_tried``; or if the rate that would be chosen is the lowest or the highest that was tried.
    """
    tried = rates_tried(dataset, model, projected, folder)
    nearest = min(tried, key=lambda one: abs(math.log(size / one)))
    chosen = best_rate(tried[nearest])
    if chosen in (min(tried[nearest]), max(tried[nearest])):
        end, further = ("lowest", "lower") if chosen == min(tried[nearest]) else ("highest", "higher")
        raise ValueError(
            f"the learning rate of {model} on {dataset} at {nearest:,} dimensions, {chosen:g}, is the {end} that was "
            f"tried; add {further} ones to TUNING and run `python -m subspace_lib sweep {_tuning(model)}`"
        )
    return chosen


def best_rate(losses: Mapping[float, float]) -> float:
    """Of the rates whose loss is within ``TIE`` of the lowest the largest, whose runs are the shortest."""
    return max(rate for rate, loss in losses.items() if loss <= (1 + TIE) * min(losses.values()))


def rates_tried(dataset: str, model: str, projected: bool, folder: Path) -> dict[int, dict[float, float]]:
    """The mean validation loss of every rate that was tried for a task, at every size.

    Raises
    ------
    ValueError
        If not all runs that this task asks for are recorded, at one length.
    """
    tuning, task = _tuning(model), (dataset, model, projected)
    rows = [
        row for row in results(tuning, folder) if (row["dataset"], row["model"], row["projection"] != "none") == task
    ]
    asked = [setting for setting in EXPERIMENTS[tuning](tuning, folder) if task_of(setting) == task]
    losses: dict[int, dict[float, list[float]]] = {}
    lengths, whole = set(), 0
    for setting in asked:
        runs = [row for row in rows if _is_of(row, setting)]
        whole += len(runs) >= setting["seeds"]
        lengths |= {row["epochs"] for row in runs}
        for row in runs:
            losses.setdefault(row["d"], {}).setdefault(row["lr"], []).append(loss_of(row))
    if whole < len(asked) or len(lengths) != 1:
        raise ValueError(
            f"no learning rate has been chosen for {model} on {dataset}: its runs are not all recorded "
            f"({whole} of {len(asked)} settings{', of several lengths' * (len(lengths) > 1)}); "
            f"run `python -m subspace_lib sweep {tuning}` first"
        )
    return {size: {rate: fmean(runs) for rate, runs in at.items()} for size, at in losses.items()}


def task_of(setting: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Data, network, and whether a subspace is trained."""
    return setting["dataset"], setting["model"], "projection" in setting


def _tuning(model: str) -> str:
    return "lr_small" if model == "small_lenet" else "lr"


def _is_of(row: dict[str, Any], setting: dict[str, Any]) -> bool:
    """Whether a recorded run of a task was made at this size and rate."""
    options = json.loads(row["model_options"] or "{}")
    size = setting["d"] in (None, row["d"])
    return size and row["lr"] == setting["lr"] and options == setting.get("model_options", {})


Settings = Iterator[dict[str, Any]]


def _rates(_: str, __: Path) -> Settings:
    for task, sizes in TUNING.items():
        dataset, model = TASKS[task]
        for d, rates in sizes.items():
            at: dict[str, Any] = {"dataset": dataset, "model": model, "d": d, "seeds": 1}
            if d is not None:
                at["projection"] = "hadamard"
            yield from (at | {"lr": lr} for lr in rates)


def _small_rates(*_: Any) -> Settings:
    """Three size classes, each tried at the shape of the family that is nearest to its middle."""
    for dataset, channels in (("mnist", 1), ("cifar10", 3)):
        size = {json.dumps(shape): _size(channels, **shape) for shape in small_networks(channels)}
        for middle, rates in SMALL_TUNING.items():
            shape = min(size, key=lambda one: abs(math.log(size[one] / middle)))
            at = {"dataset": dataset, "model": "small_lenet", "model_options": json.loads(shape), "d": None, "seeds": 3}
            yield from (at | {"lr": lr} for lr in rates)


def _curve(name: str, folder: Path) -> Settings:
    dataset, model = TASKS[name]
    common = {"dataset": dataset, "model": model}
    yield common | {"d": None, "lr": chosen_rate(dataset, model, False, folder), "extra_seeds": EXTRA_SEEDS}
    for d in DIMENSIONS[name]:
        lr = chosen_rate(dataset, model, True, folder, d)
        extra = EXTRA_SEEDS if d in AROUND[name] else 0
        yield common | {"d": d, "projection": "hadamard", "lr": lr, "extra_seeds": extra}


def _gaussian(_: str, folder: Path) -> Settings:
    """Dense Gaussian columns where a CPU can afford them, and the same in blocks, a layer each, as in the study."""
    common = {"dataset": "mnist", "model": "lenet", "projection": "dense"}
    for split in ([25] * 5, [25, 50, 100, 50, 25], [25, 50, 300, 50, 25]):
        at = common | {"d": sum(split), "lr": chosen_rate("mnist", "lenet", True, folder, sum(split))}
        yield at
        yield at | {"options": {"split": split}}


def _families(_: str, folder: Path) -> Settings:
    """d = 5,050 on the CIFAR-10 MLP: our families, and the study's, at its learning rate and at ours."""
    common = {"dataset": "cifar10", "model": "mlp", "d": 5050}
    fitted = chosen_rate("cifar10", "mlp", True, folder, 5050)
    for family in ("hadamard", "fastfood", "kronecker", "one_hot", "sparse"):
        yield common | {"projection": family, "lr": fitted}
    for name in RESTATED:
        if name not in ("study_gaussian", "sparse_independent_rows"):  # 9.5 GB of dense columns; the control of f7
            for lr in {STUDY_RATE, fitted}:
                yield common | {"projection": name, "lr": lr, "options": {"split": [4000, 1050]}}


def _corners(*_: Any) -> Settings:
    """The 2 x 2 of rows and column norms in F5, each corner over rates of its own.

    Columns longer by one factor are a larger rate. The study's are longer by 10.8 in one layer, 1.4 in the other: that
    ratio is all that is left of the length where each corner has its rate.
    """
    common = {"dataset": "cifar10", "model": "mlp", "d": 5050, "options": {"split": [4000, 1050]}}
    for name in ("study_sparse_original", "sparser_independent_long"):
        yield from (common | {"projection": name, "lr": lr} for lr in (1e-4, 3e-4, STUDY_RATE, 3e-3))
    for name in ("sparser_shared_unit", "sparser_independent_unit"):
        yield from (common | {"projection": name, "lr": lr} for lr in (STUDY_RATE, 3e-3, 1e-2, 3e-2))


def _loss_curves(_: str, folder: Path) -> Settings:
    lenet, mlp = (
        {"dataset": "cifar10", "model": model, "d": 3500, "lr": chosen_rate("cifar10", model, True, folder, 3500)}
        for model in ("lenet", "mlp")
    )
    for family in ("hadamard", "sparse", "one_hot", "dense", "orthogonal"):
        yield lenet | {"projection": family}
    yield mlp | {"projection": "hadamard"}
    for name in ("study_sparse", "sparse_independent_rows", "study_sparse2full", "study_sparse2"):
        yield lenet | {"projection": name, "lr": STUDY_RATE, "options": {"split": [200, 500, 2000, 500, 300]}}


def _single_weights(*_: Any) -> Settings:
    """As many single weights as F1 needs directions, each moved by a number of its own, over rates."""
    common = {"dataset": "mnist", "model": "mlp", "d": 500, "projection": "sparse", "options": {"density": 1e-6}}
    yield from (common | {"lr": lr} for lr in (3e-3, 1e-2, 3e-2, 1e-1, 3e-1))


def _splits(_: str, folder: Path) -> Settings:
    common = {"dataset": "mnist", "model": "lenet", "lr": chosen_rate("mnist", "lenet", True, folder, 150), "d": 150}
    yield common | {"projection": "dense"}
    for split in _published_splits(150):
        yield common | {"projection": "dense", "options": {"split": split}}


def _restated(*_: Any) -> Settings:
    """The smallest points of F3 with the study's columns, sqrt(D/d) long by layer, at its rate, with either pooling."""
    common = {"dataset": "mnist", "model": "lenet", "projection": "study_gaussian", "lr": STUDY_RATE}
    for pooling in ({}, {"pooling": "average"}):
        for d in (125, 150):
            for split in _published_splits(d):
                yield common | {"d": d, "options": {"split": split}, "model_options": pooling}


def _published_splits(d: int) -> Iterator[list[int]]:
    """How the study shared d out over LeNet's layers on MNIST."""
    for row in published(source="minut2023", experiment="fig3"):
        if row["d"] == d:
            yield [int(part) for part in str(row["note"]).removeprefix("split ").split("+")]


def _column_norms(*_: Any) -> Settings:
    common = {"dataset": "mnist", "model": "mlp", "projection": "hadamard", "d": 750, "epochs": SHORT_EPOCHS}
    for scale in (0.1, 1.0, 10.0):
        for lr in (1e-4, 3e-4, *RATES, 0.3, 1.0):
            yield common | {"lr": lr, "patience": None, "options": {"scale": scale}}


def _shapes(_: str, folder: Path) -> Settings:
    for hidden, depth in ((50, 1), (100, 1), (200, 1), (400, 1), (200, 2), (200, 3)):
        common = {"dataset": "mnist", "model": "mlp", "model_options": {"hidden": hidden, "depth": depth}}
        yield common | {"d": None, "lr": chosen_rate("mnist", "mlp", False, folder)}
        for d in (300, 500, 700, 1000):
            yield common | {"projection": "hadamard", "d": d, "lr": chosen_rate("mnist", "mlp", True, folder, d)}


def small_networks(channels: int) -> list[dict[str, int]]:
    """The small LeNets of F8 and F9: all shapes of a grid that have 250 to 6,000 parameters on so many channels."""
    grid = itertools.product((1, 2, 3, 4, 6), (3, 5), (1, 2), (0, 16))
    shapes = [dict(zip(("channels", "kernel_size", "stride", "hidden"), each, strict=True)) for each in grid]
    return [shape for shape in shapes if 250 <= _size(channels, **shape) <= 6000]


@functools.cache
def _size(in_channels: int, **shape: int) -> int:
    return count_parameters(SmallLeNet(in_channels, **shape))


def _small(name: str, folder: Path) -> Settings:
    dataset, channels = {"f8": ("mnist", 1), "f9": ("cifar10", 3)}[name]
    for shape in small_networks(channels):
        lr = chosen_rate(dataset, "small_lenet", False, folder, _size(channels, **shape))
        yield {"dataset": dataset, "model": "small_lenet", "model_options": shape, "d": None, "lr": lr}
    for d in (250, 1000, 3000, 6000):
        lr = chosen_rate(dataset, "lenet", True, folder, d)
        yield {"dataset": dataset, "model": "lenet", "projection": "hadamard", "d": d, "lr": lr}


def _fine_tuning(*_: Any) -> Settings:
    """Turned digits from two starts: the whole curve at 30 degrees, and d = 200 at other angles."""
    for angle in (30, 15, 60, 90):
        for start in ("random", "digits"):
            yield from _few_images(f"mnist/rotated_{angle}", start, tuple(FINE_TUNING) if angle == 30 else (200,))


def _fine_tuning_control(*_: Any) -> Settings:
    for task in CONTROLS:
        for start in ("random", "digits", "digits_cooled"):
            yield from _few_images(task, start, (20, 200, 1000, 5000, None))


def _few_images(task: str, start: str, dimensions: Sequence[int | None]) -> Settings:
    common = {"dataset": task, "model_options": {"start": start}} | FEW_DIGITS
    for d in dimensions:
        family = {} if d is None else {"projection": "one_hot"}
        yield from (common | family | {"d": d, "lr": lr} for lr in FINE_TUNING[d])


def _adapters(name: str, folder: Path) -> Settings:
    return _fitted(name, folder, {"dataset": "mnist/rotated_30"} | FEW_DIGITS, ADAPTED)


def _fine_tuning_network(name: str, folder: Path) -> Settings:
    return _fitted(name, folder, {"dataset": "cifar10/few"} | FEW_PHOTOGRAPHS, NETWORK)


def _fitted(name: str, folder: Path, common: dict[str, Any], points: Sequence[Point]) -> Settings:
    """Seed 0 tries all rates of a point; the others run at the best, once that is known."""
    recorded = results(name, folder)
    for options, d, rates in points:
        at = common | {"d": d, "model_options": options} | ({} if d is None else {"projection": "one_hot"})
        words = json.dumps(options, sort_keys=True)
        losses = {
            row["lr"]: loss_of(row)
            for row in recorded
            if (row["model_options"], row["seed"]) == (words, 0)
            and row["lr"] in rates
            and d == (None if row["projection"] == "none" else row["d"])
        }
        best = min(losses, key=losses.__getitem__) if len(losses) == len(rates) else None
        yield from (at | {"lr": lr} | ({} if lr == best else {"seeds": 1}) for lr in rates)


def _factored(_: str, folder: Path) -> Settings:
    """A kron B in the shapes of both layers, beside the families, at one rate: all have unit columns."""
    common = {"dataset": "cifar10", "model": "mlp", "epochs": SHORT_EPOCHS, "patience": None}
    common["lr"] = chosen_rate("cifar10", "mlp", True, folder, 4500)
    for ranks in FACTORED_RANKS:
        d = sum(a * b for a, b in ranks)
        yield common | {"projection": "kronecker", "d": d, "options": {"ranks": ranks}}
    yield from (common | {"projection": family, "d": 4500} for family in ("hadamard", "one_hot", "kronecker"))


EXPERIMENTS: dict[str, Callable[[str, Path], Settings]] = {
    "lr": _rates,
    "lr_small": _small_rates,
    "f1": _curve,
    "f3": _curve,
    "f5": _families,
    "f5_corners": _corners,
    "f2": _curve,
    "f4": _curve,
    "gaussian": _gaussian,
    "split": _splits,
    "restated": _restated,
    "f7": _loss_curves,
    "single_weights": _single_weights,
    "f8": _small,
    "f9": _small,
    "scale": _column_norms,
    "width_depth": _shapes,
    "factored": _factored,
    "finetune": _fine_tuning,
    "finetune_control": _fine_tuning_control,
    "finetune_adapters": _adapters,
    "finetune_network": _fine_tuning_network,
}
"""What each experiment runs, by name, in the order of the study: the choice of learning rates first."""
