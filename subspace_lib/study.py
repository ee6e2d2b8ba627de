"""The study, experiment by experiment: which runs each figure is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from subspace_lib.profiles import Profile
from subspace_lib.records import DATA, Spec, results

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING_EPOCHS = 8
TASKS = {"f1": ("mnist", "mlp"), "f2": ("cifar10", "mlp"), "f3": ("mnist", "lenet"), "f4": ("cifar10", "lenet")}
DIMENSIONS = {
    "f1": (50, 100, 200, 300, 400, 500, 600, 750, 850, 1000, 1200, 1500, 2500, 5000, 10_000),
    "f2": (150, 500, 750, 1500, 3000, 4750, 5000, 8000, 12_000),
    "f3": (125, 150, 250, 350, 450, 600, 700, 750, 1000, 2000),
    "f4": (100, 300, 750, 2000, 3500, 6000, 9000, 17_000),
}
TUNED = {"f1": (300, 1500), "f2": (750, 5000), "f3": (150, 750), "f4": (750, 6000)}
"""The two dimensions at which the learning rate of each task is chosen."""


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
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; choose one of: {', '.join(EXPERIMENTS)}")
    settings = list(EXPERIMENTS[name](name, folder))
    common: dict[str, Any] = {
        "experiment": name,
        "epochs": profile.epochs,
        "patience": profile.patience,
        "train_images": profile.train_images,
        "val_images": profile.val_images,
    }
    counts = [setting.pop("seeds", profile.seeds) for setting in settings]
    return [
        Spec(**(common | setting | {"seed": seed}))
        for seed in range(max(counts))
        for setting, count in zip(settings, counts, strict=True)
        if seed < count
    ]


def chosen_rate(dataset: str, model: str, projected: bool, folder: Path = DATA / "results") -> float:
    """The learning rate of a task: the one of ``RATES`` with the lowest mean validation loss in experiment "lr".

    Raises
    ------
    ValueError
        If "lr" has not been run for this task.
    """
    losses: dict[float, list[float]] = {}
    for row in results("lr", folder):
        if (row["dataset"], row["model"], row["projection"] != "none") == (dataset, model, projected):
            loss = row["val_loss"]
            losses.setdefault(row["lr"], []).append(loss if isinstance(loss, float) else float("inf"))
    if not losses:
        raise ValueError(
            f"no learning rate has been chosen for {model} on {dataset}; run `python -m subspace_lib sweep lr` first"
        )
    return min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))


Settings = Iterator[dict[str, Any]]


def _rates(_: str, __: Path) -> Settings:
    for task, (dataset, model) in TASKS.items():
        for lr in RATES:
            common = {
                "dataset": dataset,
                "model": model,
                "lr": lr,
                "seeds": 1,
                "epochs": TUNING_EPOCHS,
                "patience": None,
            }
            yield common | {"d": None}
            for d in TUNED[task]:
                yield common | {"d": d, "projection": "hadamard"}


def _curve(name: str, folder: Path) -> Settings:
    dataset, model = TASKS[name]
    common = {"dataset": dataset, "model": model}
    yield common | {"d": None, "lr": chosen_rate(dataset, model, False, folder)}
    for d in DIMENSIONS[name]:
        yield common | {"d": d, "projection": "hadamard", "lr": chosen_rate(dataset, model, True, folder)}


EXPERIMENTS: dict[str, Callable[[str, Path], Settings]] = {"lr": _rates} | dict.fromkeys(TASKS, _curve)
"""What each experiment runs, by name: the choice of learning rates first."""
