"""One small batch before the first epoch: what would fail later, or be wrong in silence, is refused in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from subspace_lib.data import Data, first_batch, is_pair
from subspace_lib.steps import Runs, SideBySide, device_of, loss_of, modes_kept


def try_out(runs: Runs, data: Data, batch_size: int) -> None:
    """Try one small batch, and refuse what would fail in the first epoch or be wrong in silence; leaves no trace.

    Raises
    ------
    TypeError, ValueError
        If inputs, outputs, targets and loss do not fit together, or the network cannot take the last batch, or be run
        side by side.
    """
    last = len(data.train[1]) % batch_size or batch_size if is_pair(data.train) else batch_size
    inputs, targets = first_batch(data.train, last)
    try:
        _try_batch(runs, data, batch_size, inputs[:2], targets[:2])
    except ValueError as error:
        if len(targets) <= 2 or not isinstance(error.__cause__, RuntimeError):
            raise
        _try_batch(runs, data, batch_size, inputs, targets)  # the network may be made for so many rows


def _try_batch(runs: Runs, data: Data, batch_size: int, inputs: Tensor, targets: Tensor) -> None:
    device = device_of(runs.net)
    inputs, targets = inputs.to(device), targets.to(device)
    states = [runs.state(i) for i in range(runs.count)]
    try:
        with (
            modes_kept(runs.net),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            explained(runs, f"a batch of {len(targets)} that was tried", batch_size),
        ):
            runs.train()
            runs.optimizer.zero_grad()
            losses = runs.each(lambda outputs, y: _checked_loss(runs, outputs, y, data), inputs, targets)
            if losses.requires_grad:
                runs.pull(losses)
            if all(p.grad is None for group in runs.optimizer.param_groups for p in group["params"]):
                raise ValueError(
                    "no weight has a gradient: the loss does not depend on any weight that is trained; look for "
                    "detach(), .data and torch.no_grad() in the network and around the call"
                )
            if runs.counted(targets):
                runs.evaluate((inputs, targets))
    finally:
        runs.optimizer.zero_grad()
        for i, state in enumerate(states):
            runs.restore(i, state)


def check_alike(inputs: Tensor, targets: Tensor, first: list[object] | None) -> list[object]:
    """The type of the targets and the numbers of axes of a batch, if they are those of the first one."""
    kind = [inputs.ndim, targets.dtype, targets.ndim]
    if first is not None and kind != first:
        raise ValueError(
            f"inputs have shape {tuple(inputs.shape)} and targets {targets.dtype} of shape {tuple(targets.shape)}, but "
            f"in the first batch inputs had {first[0]} axes and targets, {first[1]}, {first[2]}; make all batches alike"
        )
    return kind


@contextlib.contextmanager
def explained(runs: Runs, what: str, batch_size: int | None = None) -> Iterator[None]:
    """Raise the errors of network, loss and metric in words of ours, where they help."""
    try:
        yield
    except (torch.OutOfMemoryError, UnicodeError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        said = str(error).strip().split("\n")[0]
        if "more than 1" in said and "channel" in said:
            size = "" if batch_size is None else f"batch_size = {batch_size} leaves one row for the last batch: "
            raise ValueError(f"{what}: {size}{said}; take another batch_size, or drop_last=True in a loader") from error
        if isinstance(error, ValueError):
            raise
        if isinstance(runs, SideBySide) and (batch_size is not None or said.startswith("vmap")):
            kind_of_net = type(runs.net).__name__
            raise ValueError(
                f"fit_many cannot run this {kind_of_net} side by side; use fit for each: {said}"
            ) from error
        if "memory" in said:
            raise
        raise ValueError(
            f"{what} does not go through network, loss and metric: {said}; look at its shapes, types and labels, "
            "and at what the optimiser takes"
        ) from error


def _checked_loss(runs: Runs, outputs: Any, targets: Tensor, data: Data) -> Tensor:
    """The loss of a batch, if it is one number of outputs and targets that belong together."""
    if runs.ignored is not None and isinstance(outputs, Tensor):
        _check_classes(outputs, {"train": targets} | {part: y for part, (_, y) in data.pairs().items()}, runs.ignored)
    value: Tensor = loss_of(runs.loss, outputs, targets)
    if not isinstance(value, Tensor) or value.ndim:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss gives {what}, allowed a tensor of one number: the mean over the batch")
    return value


def _check_classes(outputs: Tensor, parts: dict[str, Tensor], ignored: int) -> None:
    """Refuse labels that the network has no output for; on a GPU they would end the whole process."""
    for part, targets in parts.items():
        words = f"{part} labels are {targets.dtype} of shape {tuple(targets.shape)}, outputs {tuple(outputs.shape)}"
        if targets.is_floating_point() and (targets.shape[1:] != outputs.shape[1:] or not _probabilities(targets)):
            raise TypeError(
                f"{words}; cross_entropy takes classes, as labels.long(), or a probability for each output; "
                "numbers take another loss, such as F.mse_loss"
            )
        if targets.is_floating_point():
            continue
        if outputs.ndim < 2 or targets.shape[1:] != outputs.shape[2:]:
            raise ValueError(
                f"{words}; cross_entropy takes outputs (N, classes, ...) and labels (N, ...); for tokens pass "
                "loss=lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten())"
            )
        classes = outputs.shape[1]
        low, high = (int(limit) for limit in targets.where(targets != ignored, targets.max()).aminmax())
        if low == high == ignored:  # none of them counts
            continue
        if not 0 <= low <= high < classes:
            raise ValueError(
                f"labels run from {low} to {high}, but the network has {classes} "
                f"outputs, for labels 0 to {classes - 1}; give it one output a class"
            )


def _probabilities(targets: Tensor) -> bool:
    """Whether these can be probabilities of classes; what is missing is told elsewhere."""
    return targets.ndim > 1 and not ((targets < 0).any() or ((targets.sum(1) - 1).abs() > 0.01).any())
