"""One run: from its specification to what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from subspace_lib.data import Data
from subspace_lib.memory import PeakMemory
from subspace_lib.projections import LayerwiseProjection, Projection, make_projection
from subspace_lib.study.records import Spec
from subspace_lib.study.restated import RESTATED, restate
from subspace_lib.study.starts import EfficientNet, adapted, begin
from subspace_lib.subspace import SubspaceModel, count_parameters
from subspace_lib.tasks.models import MLP, LeNet, SmallLeNet
from subspace_lib.training import DivergedError, History, fit, fit_many

P_SEED = 1_000_000
"""P is drawn with this plus the run's seed: with the same seed as theta0 it would repeat theta0's random numbers."""


def run(specs: Sequence[Spec], data: Data) -> list[dict[str, Any]]:
    """Make one run, or several of one network side by side, and say what came out.

    Runs of one seed begin at the same theta0 and see the same batches, whatever their P.

    Parameters
    ----------
    specs : sequence of Spec
        If more than one, of subspaces of one network that differ in P, d and lr alone.
    data : Data
        On the device to train on; limited here to the images that the specification allows.

    Returns
    -------
    list of dict
        One result for each: numbers, curves, and where they were measured.
    """
    first = specs[0]
    data = data.limit(first.train_images, first.val_images)
    device = data.train[0].device
    options: dict[str, Any] = {
        "epochs": first.epochs,
        "seed": first.seed,
        "batch_size": first.batch_size,
        "patience": first.patience,
    }
    with PeakMemory(device) as memory:
        models = [make_model(spec, data) for spec in specs]
        if len(specs) == 1:
            try:
                histories = [fit(models[0], data, lr=first.lr, **options)]
            except DivergedError as error:
                histories = [error.history]
        else:
            subspaces = [model for model in models if isinstance(model, SubspaceModel)]
            histories = fit_many(subspaces, data, lr=[spec.lr for spec in specs], **options)
    place = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "dataset": data.name,
        "peak_bytes": memory.bytes,
    }
    return [_result(model, history, len(specs)) | place for model, history in zip(models, histories, strict=True)]


def make_model(spec: Spec, data: Data) -> nn.Module:
    """The network of a specification on the device of the data, or its subspace; theta0 depends on the seed alone."""
    device, options = data.train[0].device, dict(spec.model_options)
    adapter = options.pop("adapter", None)

    def network() -> nn.Module:
        channels = data.shape[0]
        if spec.model == "mlp":
            start = options.pop("start", "random")
            return begin(MLP(data.shape.numel(), **options), start, spec.seed, "-standin" not in data.name)
        if spec.model == "efficientnet":
            return EfficientNet(**options)
        if spec.model == "lenet":
            return LeNet(channels, **options)
        if spec.model == "small_lenet":
            return SmallLeNet(channels, **options)
        raise ValueError(f"unknown model {spec.model!r}; choose one of: mlp, lenet, small_lenet, efficientnet")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        net = adapted(network(), **adapter) if adapter else network()
    if spec.projection == "none":
        return net.to(device)
    model = SubspaceModel(net, _make_projection(spec, net)).to(device)
    return model.factored() if "ranks" in spec.options else model


def _make_projection(spec: Spec, net: nn.Module) -> Projection:
    """P of a specification; ``split`` makes a block a layer, of these dimensions, ``ranks`` one of the layer's shape.

    ``scale`` multiplies.
    """
    options = dict(spec.options)
    split, scale, ranks = (options.pop(name, None) for name in ("split", "scale", "ranks"))

    def draw(D: int, d: int, seed: int) -> Projection:
        if spec.projection in RESTATED:
            return restate(spec.projection, D, d, seed)
        return make_projection(spec.projection, D, d, seed, **options)

    seed = P_SEED + spec.seed
    if ranks is not None:
        layers = {name: layer for name, layer in net.named_modules() if [*layer.parameters(recurse=False)]}
        blocks = {f"{name}.*": (spec.projection, tuple(pair)) for name, pair in zip(layers, ranks, strict=True)}
        P: Projection = LayerwiseProjection.over(net, blocks, seed)
    elif split is None:
        D = count_parameters(net)
        P = draw(D, spec.d or D, seed)
    else:
        counts = [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in net.modules()]
        sizes = [size for size in counts if size]
        if len(split) != len(sizes) or sum(split) != spec.d:
            raise ValueError(f"a split of d = {spec.d} over {len(sizes)} layers was expected, got {split}")
        each = (draw(D, d, seed * len(sizes) + layer) for layer, (D, d) in enumerate(zip(sizes, split, strict=True)))
        P = LayerwiseProjection(list(each))
    return P if scale is None else scale * P


def _result(model: nn.Module, history: History, together: int) -> dict[str, Any]:
    D = len(model.theta0) if isinstance(model, SubspaceModel) else count_parameters(model)
    best = history.best_epoch
    return {
        "D": D,
        "d": model.P.d if isinstance(model, SubspaceModel) else D,
        "train_loss": _finite(history.train_loss),
        "val_loss_curve": _finite(history.val_loss),
        "val_accuracy_curve": _finite(history.val_accuracy),
        "best_epoch": best,
        "epochs_run": len(history.train_loss),
        "val_accuracy": _finite(history.val_accuracy[best : best + 1] or [None])[0],
        "val_loss": _finite(history.val_loss[best : best + 1] or [None])[0],
        "test_accuracy": _finite([history.test_accuracy])[0],
        "diverged": history.diverged,
        "steps": history.steps,
        "seconds": round(history.seconds / together, 3),
        "step_ms": round(1000 * history.seconds / together / history.steps, 4) if history.steps else None,
        "together": together,
    }


def _finite(numbers: Sequence[float | None]) -> list[float | None]:
    return [number if number is not None and math.isfinite(number) else None for number in numbers]
