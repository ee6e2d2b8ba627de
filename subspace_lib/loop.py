"""The one loop of training: epochs, validation, early stopping, schedule, divergence and progress."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from subspace_lib import checks
from subspace_lib.data import Data, batches_of, is_pair
from subspace_lib.graphs import GRAPHS, Steps
from subspace_lib.memory import keep_freed_memory
from subspace_lib.steps import Runs, State, device_of, modes_kept
from subspace_lib.trial import check_alike, explained, try_out

Schedule = Callable[[float], float]
"""From the share of all steps that is taken to a share of the learning rate."""


@dataclass
class History:
    """What happened in one run, epoch by epoch; entry 0 of the validation lists is the state before training.

    Attributes
    ----------
    train_loss : list of float
        Mean loss over the batches of each epoch, one entry an epoch.
    val_loss, val_accuracy : list of float
        Before training and after each epoch; empty without a validation set. The accuracy is the metric, where one
        was given; empty, where a loss other than cross-entropy came without one.
    best_epoch : int
        The epoch with the lowest validation loss, whose weights the model holds afterwards; the last epoch
        without a validation set.
    test_loss, test_accuracy : float or None
        Measured once, with the weights of the best epoch; None without a test set (or metric).
    seconds : float
        Time of the whole run.
    steps : int
        Optimiser steps taken.
    diverged : bool
        Whether the run ended because a loss was infinite or not a number.
    """

    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = 0
    test_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float = 0.0
    steps: int = 0
    diverged: bool = False

    @property
    def best_accuracy(self) -> float:
        """Validation accuracy, or metric, at the best epoch; nan where there is none."""
        return self.val_accuracy[self.best_epoch] if self.val_accuracy else math.nan


@dataclass
class Loop:
    """The loop that ``fit`` and ``fit_many`` share, and the numbers that steer it."""

    data: Data
    epochs: int
    seed: int
    batch_size: int
    patience: int | None
    schedule: Schedule | None
    progress: bool
    on_epoch: Callable[[History], object] | None

    def __post_init__(self) -> None:
        if not isinstance(self.data, Data):
            kind = type(self.data).__name__
            raise TypeError(f"data must be a Data, got a {kind}; pass Data(train=(inputs, targets), val=None), say")
        for label, function in (("schedule", self.schedule), ("on_epoch", self.on_epoch)):
            if function is not None:
                checks.function(label, function)
        self.epochs = checks.integer("epochs", self.epochs, 1)
        self.batch_size = checks.integer("batch_size", self.batch_size, 1)
        self.seed = checks.seed("seed", self.seed)
        self.patience = None if self.patience is None else checks.integer("patience", self.patience, 1)
        if self.patience is not None and self.data.val is None:
            raise ValueError(
                f"patience = {self.patience} waits for a lower validation loss, but data.val is None; "
                "give validation data, or leave patience out"
            )
        if is_pair(self.data.train) and self.batch_size > (n := len(self.data.train[1])):
            raise ValueError(f"batch_size = {self.batch_size} is larger than the training set of {n}; use at most {n}")
        self.graphs = not checks.says(GRAPHS, "0", "every step launched by itself")
        self.kind: list[object] | None = None
        self.order = torch.Generator().manual_seed(self.seed)

    def device(self, model: nn.Module) -> torch.device:
        """That of the data; of the model, where the data come in batches."""
        return self.data.train[0].device if is_pair(self.data.train) else device_of(model)

    def run(self, runs: Runs) -> list[History]:
        """Bring every run to its best epoch, and look at the test set with what it knows there."""
        started = time.perf_counter()
        keep_freed_memory()
        try_out(runs, self.data, self.batch_size)
        histories = [History() for _ in range(runs.count)]
        best = [runs.state(i) for i in range(runs.count)]
        try:
            with modes_kept(runs.net):
                self._epochs(runs, histories, best)
        except BaseException:
            for i, history in enumerate(histories):
                if not (history.best_epoch or history.diverged or history.val_loss[1:]):  # within its first epoch
                    best[i] = runs.state(i)
            raise
        finally:
            for i, state in enumerate(best):
                runs.restore(i, state)
        if self.data.test is not None:
            with explained(runs, "the test set"):
                measured = runs.evaluate(self.data.test)
            for history, (loss, metric) in zip(histories, measured, strict=True):
                history.test_loss, history.test_accuracy = loss, None if runs.metric is None else metric
        if any(math.isnan(history.test_loss or 0) for history in histories):
            warnings.warn("the test loss is nan: look for infinite or missing values in the test data", stacklevel=4)
        for history in histories:
            history.seconds = time.perf_counter() - started
        return histories

    def _epochs(self, runs: Runs, histories: list[History], best: list[State]) -> None:
        """Epochs until no run goes on; ``best`` follows."""
        going = list(range(runs.count))
        steps = Steps(
            *(runs, self.data, self.batch_size),
            wanted=self.graphs and self.schedule is None,  # a recorded step knows its own rate alone
            lasting=self.on_epoch is None,
        )
        self._validate(runs, histories, going)
        bar = tqdm(range(self.epochs), desc="epochs", disable=not self.progress, leave=False)
        for epoch in bar:
            losses, taken = self._epoch(runs, steps, epoch)
            for i in going:
                histories[i].train_loss.append(losses[i])
                histories[i].steps += taken
            self._validate(runs, histories, going)
            if self.data.val is not None:
                bar.set_postfix(val_loss=f"{min(histories[i].val_loss[-1] for i in going):.4g}")
            for i in (taking_part := tuple(going)):
                if _improved(histories[i]):
                    best[i] = runs.state(i)
                elif histories[i].diverged or epoch + 1 - histories[i].best_epoch >= (self.patience or math.inf):
                    going.remove(i)
            if self.on_epoch is not None:
                for i in taking_part:
                    runs.show(i)
                    self.on_epoch(histories[i])
                    runs.heed(i)
            if not going:
                break

    def _epoch(self, runs: Runs, step: Steps, epoch: int) -> tuple[list[float], int]:
        """One pass over the training set: the mean loss of every run, and how many steps it took."""
        device = device_of(runs.net)
        runs.train()
        step.begin()
        train = self.data.train
        none_ignored = runs.ignored is None or (is_pair(train) and not (train[1] == runs.ignored).any())
        total, rows, steps = torch.zeros(runs.count, device=device), 0, 0
        for inputs, targets in batches_of(train, self.batch_size, device, self.order):
            if self.schedule is not None:
                runs.set_rate(self._share(self.schedule, epoch, steps))
            with explained(runs, f"batch {steps + 1} of epoch {epoch + 1}"):
                self.kind = check_alike(inputs, targets, self.kind)
                losses, counted = step(inputs, targets), len(targets) if none_ignored else runs.counted(targets)
                if counted:  # else the loss is a mean over nothing
                    total += losses * counted
            rows += counted
            steps += 1
        return [one / max(rows, 1) for one in total.tolist()], steps

    def _share(self, schedule: Schedule, epoch: int, steps: int) -> float:
        """What the schedule makes of the learning rate at a step."""
        train = self.data.train
        try:
            each = math.ceil(len(train[1]) / self.batch_size) if is_pair(train) else len(train)
        except TypeError as error:
            raise TypeError(
                f"a schedule needs to know how many batches an epoch has, and train cannot say: {error}"
            ) from None
        share = checks.number("schedule(done)", schedule(min((epoch + steps / each) / self.epochs, 1.0)))
        if not 0 <= share < math.inf:
            raise ValueError(f"schedule must give a share of lr, 0 or more, got {share} in epoch {epoch + 1}")
        return share

    def _validate(self, runs: Runs, histories: list[History], going: list[int]) -> None:
        """Write down loss and metric of the runs that are still going."""
        if self.data.val is not None:
            with explained(runs, "the validation set"):
                measured = runs.evaluate(self.data.val)
            for i in going:
                histories[i].val_loss.append(measured[i][0])
                if runs.metric is not None:
                    histories[i].val_accuracy.append(measured[i][1])


def _improved(history: History) -> bool:
    """Judge the last epoch: whether the run has diverged in it, and whether it is the best so far."""
    history.diverged = not all(map(math.isfinite, (history.train_loss[-1], *history.val_loss[-1:])))
    improved = not history.diverged and (
        not history.val_loss or not history.val_loss[history.best_epoch] <= history.val_loss[-1]
    )
    if improved:
        history.best_epoch = len(history.train_loss)
    return improved
