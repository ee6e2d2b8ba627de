"""One small batch before the first epoch: what would fail later, or be wrong in silence, is refused in words."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace_lib.data import Data, first_batch, is_pair
from subspace_lib.steps import Measure, Runs, SideBySide, check_outputs, device_of, modes_kept

IGNORED = -100
"""The class that PyTorch's cross-entropy leaves out by default."""


def try_out(runs: Runs, data: Data, batch_size: int) -> None:
    """Try one small batch, and refuse what would fail in the first epoch or be wrong in silence; leaves no trace.

    Raises
    ------
    TypeError, ValueError
        If inputs, outputs, targets and loss do not fit together, or the network cannot take the last batch, or be run
        side by side.
    """
    last = len(data.train[1]) % batch_size or batch_size if is_pair(data.train) else 2
    inputs, targets = (rows[:2].to(device_of(runs.net)) for rows in first_batch(data.train, min(last, 2)))
    states = [runs.state(i) for i in range(runs.count)]
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    try:
        with modes_kept(runs.net), torch.random.fork_rng(devices=devices):
            runs.train()
            runs.pull(runs.each(lambda outputs, y: _checked_loss(runs.loss, outputs, y, data), inputs, targets))
            runs.evaluate((inputs, targets))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise _explained(error, runs, inputs, batch_size) from error
    finally:
        runs.optimizer.zero_grad()
        for i, state in enumerate(states):
            runs.restore(i, state)


def _explained(error: Exception, runs: Runs, inputs: Tensor, batch_size: int) -> Exception:
    """The error in words of ours, where they help."""
    said = str(error).strip().splitlines()[0]
    if len(inputs) == 1 and "more than 1" in said:
        return ValueError(
            f"batch_size = {batch_size} leaves one row for the last batch: {said}; take another batch_size"
        )
    if isinstance(error, ValueError):
        return error
    if isinstance(runs, SideBySide):
        return ValueError(f"fit_many cannot run this {type(runs.net).__name__} side by side; use fit for each: {said}")
    return error


def _checked_loss(loss: Measure, outputs: Any, targets: Tensor, data: Data) -> Tensor:
    """The loss of a batch, if it is one number of outputs and targets that belong together."""
    check_outputs(loss, outputs)
    if loss is F.cross_entropy:
        _check_classes(outputs, data)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")
            value: Tensor = loss(outputs, targets)
    except (TypeError, AttributeError) as error:
        if isinstance(outputs, Tensor):
            raise
        kind = type(outputs).__name__
        raise TypeError(f"the network gives a {kind}, and the loss does not take it ({error}); pass another") from error
    except UserWarning:
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)} for {len(targets)} rows; "
            "give both one shape"
        ) from None
    if not isinstance(value, Tensor) or value.ndim:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss gives {what}, allowed a tensor of one number: the mean over the batch")
    return value


def _check_classes(outputs: Tensor, data: Data) -> None:
    """Refuse labels that the network has no output for; on a GPU they would end the whole process."""
    for part, (_, targets) in data.pairs().items():
        words = f"{part} labels are {targets.dtype} of shape {tuple(targets.shape)}, outputs {tuple(outputs.shape)}"
        if targets.is_floating_point() and targets.shape[1:] != outputs.shape[1:]:
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
        low, high = (int(limit) for limit in targets.where(targets != IGNORED, targets.max()).aminmax())
        if not 0 <= low <= high < classes:
            raise ValueError(
                f"labels run from {low} to {high}, but the network has {classes} "
                f"outputs, for labels 0 to {classes - 1}; give it one output a class"
            )
