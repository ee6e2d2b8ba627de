"""Many subspaces trained at once, on one device and over one stream of batches."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace_lib.memory import explained_when_full
from subspace_lib.subspace import SubspaceModel
from subspace_lib.training import History, Split, check_labels, check_run, fused, laid_out


@explained_when_full()
def fit_many(
    models: Sequence[SubspaceModel],
    data: Split,
    *,
    epochs: int,
    lr: float | Sequence[float],
    seed: int = 0,
    batch_size: int = 128,
    patience: int | None = None,
    optimizer_class: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
) -> list[History]:
    """Train models of one architecture side by side; each goes the way that ``fit`` would take it, to rounding.

    All runs see the same batches. One batched forward and backward pass serves them all, with a gradient for each
    run's own theta; each run then has its own P, d, learning rate and early stopping. On a GPU this fills a
    device that one small network leaves idle; on a CPU, ``fit`` in several processes is faster.

    Parameters
    ----------
    models : sequence of SubspaceModel
        Trained in place, on the device of ``data``. They may differ in theta0, P and d.
    data, epochs, seed, batch_size, patience, optimizer_class
        As for ``fit``.
    lr : float or sequence of float
        One learning rate for all, or one for each model.

    Returns
    -------
    list of History
        One for each model. A run whose loss became infinite or not a number ends there, with ``diverged`` set;
        ``seconds`` is the time of all runs together.

    Raises
    ------
    ValueError
        If there is no model, architectures differ, the numbers of models and rates differ, or as ``fit`` does.
    """
    rates = [float(lr)] * len(models) if isinstance(lr, (int, float)) else list(lr)
    if not models or len(rates) != len(models):
        raise ValueError(f"got {len(models)} models and {len(rates)} learning rates; give one rate, or one a model")
    if len({(*model.layout(), model.z.dtype) for model in models}) > 1:
        raise ValueError("the models differ in architecture or type; fit_many trains copies of one network")
    images, labels = data.train
    for rate in rates:
        check_run(epochs, rate, seed, batch_size, patience, len(labels))
    started = time.perf_counter()
    check_labels(models[0].to(images.device), data)
    runs = _Runs(models, rates, images.device, optimizer_class)
    histories = [History() for _ in models]
    best = [runs.state(i) for i in range(len(models))]
    going = set(range(len(models)))
    if data.val is not None:
        runs.validate(data.val, histories, going)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        total = torch.zeros(len(models), device=images.device)
        batches = torch.randperm(len(labels), generator=order).to(images.device).split(batch_size)
        for batch in batches:
            total += runs.step(images[batch], labels[batch]) * len(batch)
        for i in going:
            histories[i].train_loss.append(float(total[i]) / len(labels))
            histories[i].steps += len(batches)
        if data.val is not None:
            runs.validate(data.val, histories, going)
        for i in sorted(going):
            history = histories[i]
            if not all(map(math.isfinite, (history.train_loss[-1], *history.val_loss[-1:]))):
                history.diverged = True
                going.remove(i)
            elif data.val is None or history.val_loss[-1] < history.val_loss[history.best_epoch]:
                history.best_epoch, best[i] = epoch, runs.state(i)
            elif patience is not None and epoch - history.best_epoch >= patience:
                going.remove(i)
        if not going:
            break
    for i, state in enumerate(best):
        runs.restore(i, *state)
    if data.test is not None:
        for history, (_, accuracy) in zip(histories, runs.evaluate(*data.test), strict=True):
            history.test_accuracy = accuracy
    for history in histories:
        history.seconds = time.perf_counter() - started
    return histories


class _Runs:
    """The stacked state of all runs: theta of shape (runs, D), the buffers alike, and one z a run."""

    def __init__(
        self,
        models: Sequence[SubspaceModel],
        rates: Sequence[float],
        device: torch.device,
        optimizer_class: Callable[..., torch.optim.Optimizer],
    ) -> None:
        self.models = [model.to(device) for model in models]
        self.net = copy.deepcopy(models[0].net)
        self.theta0 = torch.stack([model.theta0 for model in models])
        self.theta = self.theta0.clone().requires_grad_()
        weights = models[0].cut(self.theta0[0])
        self.buffers = {
            name: torch.stack([model.net.get_buffer(name) for model in models])
            for name, _ in self.net.named_buffers()
            if name not in weights
        }
        groups = [{"params": [model.z], "lr": rate} for model, rate in zip(models, rates, strict=True)]
        self.optimizer = optimizer_class(groups, lr=rates[0], **fused(optimizer_class))
        for i in range(len(models)):
            self._write(i)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of every run on one batch; gives the loss of each."""
        self.net.train()
        losses = self._losses(self._logits(images), labels).mean(1)
        (gradients,) = torch.autograd.grad(losses.sum(), self.theta)
        for model, gradient in zip(self.models, gradients, strict=True):
            model.z.grad = model.P.pull(gradient)
        self.optimizer.step()
        for i in range(len(self.models)):
            self._write(i)
        return losses.detach()

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, batch_size: int = 1000) -> list[tuple[float, float]]:
        """Mean loss and accuracy of every run in evaluation mode."""
        self.net.eval()
        loss = torch.zeros(len(self.models), dtype=torch.float64, device=labels.device)
        correct = torch.zeros(len(self.models), dtype=torch.int64, device=labels.device)
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = self._logits(x)
            loss += self._losses(logits, y).double().sum(1)
            correct += (logits.argmax(2) == y).sum(1)
        return [
            (one / len(labels), hits / len(labels)) for one, hits in zip(loss.tolist(), correct.tolist(), strict=True)
        ]

    def validate(self, val: tuple[Tensor, Tensor], histories: Sequence[History], going: set[int]) -> None:
        """Write down loss and accuracy of the runs that are still going."""
        for i, (loss, accuracy) in enumerate(self.evaluate(*val)):
            if i in going:
                histories[i].val_loss.append(loss)
                histories[i].val_accuracy.append(accuracy)

    def state(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A copy of what training changes in run i."""
        return self.models[i].z.detach().clone(), {name: buffer[i].clone() for name, buffer in self.buffers.items()}

    @torch.no_grad()
    def restore(self, i: int, z: Tensor, buffers: dict[str, Tensor]) -> None:
        """Put run i, and its model, where ``state`` found it."""
        model = self.models[i]
        model.z.copy_(z)
        model.z.grad = None
        self._write(i)
        for name, buffer in buffers.items():
            self.buffers[name][i] = buffer
            model.net.get_buffer(name).copy_(buffer)

    @torch.no_grad()
    def _write(self, i: int) -> None:
        model = self.models[i]
        model.P.write(self.theta0[i], model.z, self.theta[i])

    def _logits(self, images: Tensor) -> Tensor:
        def call(theta: Tensor, buffers: dict[str, Tensor]) -> Tensor:
            tensors = self.models[0].cut(theta) | buffers
            logits: Tensor = torch.func.functional_call(self.net, tensors, (x,), tie_weights=False)
            return logits

        x = laid_out(images)
        return torch.vmap(call)(self.theta, self.buffers)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every run on every image, of shape (runs, images)."""
        return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none").view(len(logits), -1)
