"""Training: one loop for networks, subspaces and their comparison."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from subspace_lib.memory import explained_when_full, keep_freed_memory
from subspace_lib.subspace import SubspaceModel, SubspaceOptimizer


class Split(Protocol):
    """What ``fit`` needs of a data set; ``datasets.Data`` is one."""

    @property
    def train(self) -> tuple[Tensor, Tensor]: ...
    @property
    def val(self) -> tuple[Tensor, Tensor] | None: ...
    @property
    def test(self) -> tuple[Tensor, Tensor] | None: ...


@dataclass
class History:
    """What happened in one run, epoch by epoch; entry 0 of the validation lists is the state before training.

    Attributes
    ----------
    train_loss : list of float
        Mean loss over the batches of each epoch, one entry an epoch.
    val_loss, val_accuracy : list of float
        Before training and after each epoch; empty without a validation set.
    best_epoch : int
        The epoch with the lowest validation loss, whose weights the model holds afterwards; the last epoch
        without a validation set.
    test_accuracy : float or None
        Measured once, with the weights of the best epoch; None without a test set.
    seconds : float
        Time of the whole run.
    steps : int
        Optimiser steps taken.
    diverged : bool
        Whether ``fit_many`` ended the run because its loss was infinite or not a number; ``fit`` raises instead.
    """

    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = 0
    test_accuracy: float | None = None
    seconds: float = 0.0
    steps: int = 0
    diverged: bool = False

    @property
    def best_accuracy(self) -> float:
        """Validation accuracy at the best epoch; nan without a validation set."""
        return self.val_accuracy[self.best_epoch] if self.val_accuracy else math.nan


class DivergedError(ValueError):
    """The loss became infinite or not a number; ``history`` holds what was recorded before."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@explained_when_full()
def fit(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    lr: float,
    seed: int = 0,
    batch_size: int = 128,
    patience: int | None = None,
    optimizer_class: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    progress: bool = False,
    on_epoch: Callable[[History], object] | None = None,
) -> History:
    """Train ``model`` on ``data``: all its weights, or the z of a ``SubspaceModel``.

    The order of the batches depends on ``seed`` alone, so runs that differ in the model or in P alone see the
    same batches. The model ends with the weights of the epoch of lowest validation loss, and the test set is
    looked at once, with these.

    Parameters
    ----------
    model : nn.Module
        Trained in place, on the device of ``data``.
    data : Data
        Or anything with ``train``, ``val`` and ``test``: pairs (images, labels), or None for the last two.
    epochs, lr, seed, batch_size
        As the words say; the last batch of an epoch may be smaller.
    patience : int, optional
        Stop after this many epochs without a lower validation loss.
    optimizer_class : type
        The optimiser, called with the parameters and ``lr``.
    progress : bool
        Show a bar, one line, one count an epoch.
    on_epoch : callable, optional
        Called with the history after each epoch, as a ``tracking.WandbLogger`` is.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If a number is out of range, a batch is larger than the training set, or the model has nothing to train.
    DivergedError
        If the loss becomes infinite or not a number.
    """
    images, labels = data.train
    check_run(epochs, lr, seed, batch_size, patience, len(labels))
    device = images.device
    model.to(device)
    started = time.perf_counter()
    keep_freed_memory()
    net, optimizer = _prepare(model, optimizer_class, lr)
    check_labels(net, data)
    order = torch.Generator().manual_seed(seed)
    history = History()
    best = _State(net, optimizer)
    if data.val is not None:
        _validate(net, data.val, history)
    bar = tqdm(range(1, epochs + 1), desc="epochs", disable=not progress, leave=False)
    for epoch in bar:
        net.train()
        total = torch.zeros((), device=device)
        for batch in torch.randperm(len(labels), generator=order).to(device).split(batch_size):
            loss = F.cross_entropy(net(laid_out(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
            history.steps += 1
        history.train_loss.append(float(total) / len(labels))
        if data.val is not None:
            _validate(net, data.val, history)
            bar.set_postfix(val_accuracy=f"{history.val_accuracy[-1]:.3f}")
        if on_epoch is not None:
            on_epoch(history)
        losses = {"training": history.train_loss[-1]} | ({"validation": history.val_loss[-1]} if data.val else {})
        if wrong := [f"the {part} loss is {loss}" for part, loss in losses.items() if not math.isfinite(loss)]:
            best.restore(net, optimizer)
            raise DivergedError(
                f"{' and '.join(wrong)} in epoch {epoch} at lr = {lr:g}; try a smaller lr, "
                "or look for infinite or missing values in the data",
                history,
            )
        if data.val is None or history.val_loss[-1] < history.val_loss[history.best_epoch]:
            history.best_epoch = epoch
            best = _State(net, optimizer)
        elif patience is not None and epoch - history.best_epoch >= patience:
            break
    best.restore(net, optimizer)
    if isinstance(model, SubspaceModel) and isinstance(optimizer, SubspaceOptimizer):
        model.take(optimizer.z, net)
    if data.test is not None:
        history.test_accuracy = evaluate(net, *data.test)[1]
    history.seconds = time.perf_counter() - started
    return history


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of ``net`` in evaluation mode."""
    was_training = net.training
    net.eval()
    loss = torch.zeros((), dtype=torch.float64, device=labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = net(laid_out(x))
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    net.train(was_training)
    return float(loss) / len(labels), int(correct) / len(labels)


class _State:
    """A copy of what training changes: z in place of the weights, where there is one."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.z = optimizer.z.detach().clone() if isinstance(optimizer, SubspaceOptimizer) else None
        self.net = copy.deepcopy(dict(net.named_buffers()) if self.z is not None else net.state_dict())

    def restore(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        net.load_state_dict(self.net, strict=False)
        if isinstance(optimizer, SubspaceOptimizer) and self.z is not None:
            optimizer.set_z(self.z)


def _prepare(
    model: nn.Module, optimizer_class: Callable[..., torch.optim.Optimizer], lr: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network to run and the optimiser that moves it."""
    options: dict[str, Any] = {"lr": lr} | fused(optimizer_class)
    if isinstance(model, SubspaceModel):
        return model.train_form(optimizer_class, **options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; there is nothing to fit")
    return model, optimizer_class(parameters, **options)


def fused(optimizer_class: Callable[..., torch.optim.Optimizer]) -> dict[str, bool]:
    """The keyword that makes an optimiser one operation, where it has one."""
    return {"fused": True} if optimizer_class in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) else {}


def laid_out(images: Tensor) -> Tensor:
    """Images with their channels last, in which convolutions on a CPU run up to twice as fast."""
    if images.ndim == 4 and images.device.type == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    return images


@torch.no_grad()
def check_labels(net: nn.Module, data: Split) -> None:
    """Refuse labels that the network has no output for; on a GPU they would end the whole process."""
    was_training = net.training
    classes = net.eval()(laid_out(data.train[0][:1])).shape[-1]
    net.train(was_training)
    for pair in (data.train, data.val, data.test):
        if pair is not None and not 0 <= int(pair[1].min()) <= int(pair[1].max()) < classes:
            raise ValueError(
                f"labels run from {int(pair[1].min())} to {int(pair[1].max())}, but the network has {classes} "
                f"outputs, for labels 0 to {classes - 1}; give it one output a class"
            )


def _validate(net: nn.Module, val: tuple[Tensor, Tensor], history: History) -> None:
    loss, accuracy = evaluate(net, *val)
    history.val_loss.append(loss)
    history.val_accuracy.append(accuracy)


def check_run(epochs: int, lr: float, seed: int, batch_size: int, patience: int | None, n: int) -> None:
    """Refuse numbers that are out of range, for a training set of n images."""
    for label, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is None and label == "patience":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{label} must be an integer of at least 1, got {value!r}")
    if not isinstance(lr, (int, float)) or not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    if not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    if batch_size > n:
        raise ValueError(f"batch_size = {batch_size} is larger than the training set of {n}; use at most {n}")
