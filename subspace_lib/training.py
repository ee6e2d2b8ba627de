"""Training: ``fit`` for a network or a subspace, ``fit_many`` for many side by side, and ``evaluate``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Number
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subspace_lib import checks
from subspace_lib.data import Data
from subspace_lib.loop import History, Loop, Schedule
from subspace_lib.memory import explained_when_full
from subspace_lib.optimizer import fused, optimizer_of
from subspace_lib.products import Products
from subspace_lib.steps import Measure, One, OneFactored, OneSubspace, Runs, SideBySide, accuracy
from subspace_lib.subspace import SubspaceModel, count_parameters
from subspace_lib.trial import explained

__all__ = ["DivergedError", "History", "accuracy", "evaluate", "fit", "fit_many"]


class DivergedError(ValueError):
    """The loss became infinite or not a number; ``history`` holds what was recorded, with ``diverged`` set."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message, history)
        self.history = history

    def __str__(self) -> str:
        return str(self.args[0])


@explained_when_full()
def fit(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float,
    seed: int = 0,
    batch_size: int = 128,
    patience: int | None = None,
    optimizer_class: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    loss: Measure = F.cross_entropy,
    metric: Measure | None = None,
    schedule: Schedule | None = None,
    progress: bool = False,
    on_epoch: Callable[[History], object] | None = None,
) -> History:
    """Train ``model`` on ``data``: all its weights, or the z of a ``SubspaceModel``.

    The order of the batches depends on ``seed`` alone, so runs that differ in the model or in P alone see the
    same batches. The model ends with the weights of the epoch of lowest validation loss, and the test set is
    looked at once, with these. A run that is interrupted keeps them too, as they were found until then; within its
    first epoch it keeps what it has learnt. On a GPU one step is recorded and replayed, where that is certainly the
    same (``graphs``); anew in each epoch, where ``on_epoch`` or a metric of the caller's own could change the model.

    Parameters
    ----------
    model : nn.Module
        Trained in place, on the device of ``data``; with batches in ``data``, on its own. A module that is in
        evaluation mode inside a network in training mode stays so.
    data : Data
        Inputs and targets, as tensors or as batches.
    epochs, lr, seed, batch_size
        As the words say; the last batch of an epoch may be smaller. Batches that are given in ``data`` have their
        own size and order.
    patience : int, optional
        Stop after this many epochs without a lower validation loss.
    optimizer_class : type
        The optimiser, called with the parameters and ``lr``.
    loss : callable
        ``loss(outputs, targets)``: the mean over a batch.
    metric : callable, optional
        ``metric(outputs, targets)``: the mean over a batch, to be written down as accuracy; ``training.accuracy``
        unless ``loss`` is another than cross-entropy.
    schedule : callable, optional
        The rate at each step is ``lr * schedule(done)``, done being the share of all steps that is taken: 0 at first.
    progress : bool
        Show a bar, one line, one count an epoch.
    on_epoch : callable, optional
        Called with the history after each epoch, as a ``tracking.WandbLogger`` is. Training goes on from what it makes
        of the model; the weights of the best epoch are those that were validated, before that.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, a batch is larger than the training set, the model has nothing to train, or
        inputs, outputs, targets and loss do not fit together.
    DivergedError
        If the loss becomes infinite or not a number.

    Examples
    --------
    Regression, with a rate that falls to 0 and with the mean absolute error as metric:

    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> data = Data(train=(x, 3 * x), val=(x, 3 * x))
    >>> net = torch.nn.Linear(1, 1)
    >>> history = fit(net, data, epochs=50, lr=0.5, batch_size=16, loss=F.mse_loss, metric=F.l1_loss,
    ...               schedule=lambda done: 1 - done)
    >>> history.best_accuracy < 0.01
    True

    The next of T tokens, from outputs of shape (N, T, 5) and targets of shape (N, T):

    >>> tokens = torch.arange(40).reshape(4, 10) % 5
    >>> net = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
    >>> history = fit(net, Data(train=(tokens[:, :-1], tokens[:, 1:]), val=None), epochs=40, lr=0.1, batch_size=2,
    ...               loss=lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten()))
    >>> history.train_loss[-1] < 0.1
    True
    """
    loop = Loop(data, epochs, seed, batch_size, patience, schedule, progress, on_epoch)
    _check_trainable(model)
    parameters = [p for p in model.to(loop.device(model)).parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": (lr := checks.positive("lr", lr)), **fused(optimizer_class, parameters)}
    runs: Runs
    if not isinstance(model, SubspaceModel):
        runs = One(model, loss, metric, optimizer_of(parameters, optimizer_class, options))
    elif model.factoring is None:
        runs = OneSubspace(model, loss, metric, optimizer_class, **options)
    else:
        products = Products(model, data)
        loop.data = products.data
        runs = OneFactored(products, loss, metric, optimizer_of(parameters, optimizer_class, options))
    (history,) = loop.run(runs)
    if history.diverged:
        losses = {"training": history.train_loss[-1:], "validation": history.val_loss[-1:]}
        wrong = [f"the {part} loss is {one}" for part, last in losses.items() for one in last if not math.isfinite(one)]
        raise DivergedError(
            f"{' and '.join(wrong)} in epoch {len(history.train_loss)} at lr = {lr:g}; try a smaller lr, "
            "or look for infinite or missing values in the data",
            history,
        )
    return history


@explained_when_full()
def fit_many(
    models: Sequence[SubspaceModel],
    data: Data,
    *,
    epochs: int,
    lr: float | Sequence[float],
    seed: int = 0,
    batch_size: int = 128,
    patience: int | None = None,
    optimizer_class: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    loss: Measure = F.cross_entropy,
    metric: Measure | None = None,
    schedule: Schedule | None = None,
    progress: bool = False,
    on_epoch: Callable[[History], object] | None = None,
) -> list[History]:
    """Train models of one architecture side by side; each goes the way that ``fit`` would take it, to rounding.

    All runs see the same batches. One batched forward and backward pass serves them all, with a gradient for each
    run's own theta; each run then has its own P, d, learning rate, early stopping, and random numbers in the network.
    On a GPU this fills a device that one small network leaves idle; on a CPU, ``fit`` in several processes is faster.

    Parameters
    ----------
    models : sequence of SubspaceModel
        Trained in place, on the device of ``data``. They may differ in theta0, P and d.
    lr : float or sequence of float
        One learning rate for all, or one for each model.
    data, epochs, seed, batch_size, patience, optimizer_class, loss, metric, schedule, progress
        As for ``fit``; network, loss and metric run under ``torch.vmap``. One optimiser holds a group for each run;
        one that couples its groups, as by a common norm, needs ``fit``.
    on_epoch : callable, optional
        Called after each epoch with the history of every run that took part in it.

    Returns
    -------
    list of History
        One for each model. A run whose loss became infinite or not a number ends there, with ``diverged`` set;
        ``seconds`` is the time of all runs together.

    Raises
    ------
    TypeError, ValueError
        If there is no model, architectures differ, the numbers of models and rates differ, ``torch.vmap`` cannot run
        the network (recurrent layers, branches on its own numbers), or as ``fit`` does.
    """
    if isinstance(models, nn.Module) or not isinstance(models, Iterable):
        raise TypeError(f"models must be a sequence of SubspaceModels, got one {type(models).__name__}; use fit for it")
    models = list(models)
    for model in models:
        if not isinstance(model, SubspaceModel):
            raise TypeError(f"fit_many trains SubspaceModels, got a {type(model).__name__}; use fit for it")
        _check_trainable(model)
    if len(set(map(id, models))) < len(models):
        raise ValueError("one model stands there twice; fit_many needs a model for each run: copy.deepcopy(model)")
    given: Any = lr.tolist() if hasattr(lr, "tolist") else lr
    several = isinstance(given, Iterable) and not isinstance(given, str)
    rates: list[Any] = list(given) if several else [given] * len(models)
    if not models or len(rates) != len(models):
        raise ValueError(f"got {len(models)} models and {len(rates)} learning rates; give one rate, or one a model")
    rates = [checks.positive("lr", rate) for rate in rates]
    if any(_kind(model) != _kind(models[0]) for model in models):
        raise ValueError("the models differ in architecture or type; fit_many trains copies of one network")
    loop = Loop(data, epochs, seed, batch_size, patience, schedule, progress, on_epoch)
    device = loop.device(models[0])
    return loop.run(SideBySide([model.to(device) for model in models], loss, metric, optimizer_class, rates))


def evaluate(
    net: nn.Module,
    inputs: Any,
    targets: Tensor | None = None,
    batch_size: int = 1000,
    *,
    loss: Measure = F.cross_entropy,
    metric: Measure | None = None,
) -> tuple[float, float]:
    """Mean loss and metric of ``net`` in evaluation mode: cross-entropy and accuracy, unless others are given.

    Parameters
    ----------
    inputs, targets
        Two tensors of N rows; or, without ``targets``, batches of such pairs, for instance a ``DataLoader``.
    batch_size, loss, metric
        As for ``fit``.

    Returns
    -------
    loss, metric : float
        The metric is nan where there is none, and where the loss is.

    Examples
    --------
    >>> net = torch.nn.Linear(3, 2)
    >>> x, y = torch.randn(10, 3), torch.arange(10) % 2
    >>> evaluate(net, x, y)[0] - evaluate(net, [(x[:7], y[:7]), (x[7:], y[7:])])[0] < 1e-6
    True
    """
    _check_network(net)
    if isinstance(inputs, Data):
        raise TypeError("inputs is a Data; pass one of its parts, as in evaluate(net, *data.val)")
    rows = inputs if targets is None else (inputs, targets)
    runs = One(net, loss, metric)
    with explained(runs, "evaluation"):
        return runs.evaluate(rows, checks.integer("batch_size", batch_size, 1))[0]


def _kind(model: SubspaceModel) -> list[Any]:
    """What models have in common that one network can stand for: weights, buffers, layers, and what rests."""
    layers = [(type(m), model.net.training and not m.training, _settings(m)) for m in model.net.modules()]
    buffers = [(name, buffer.shape, buffer.dtype) for name, buffer in model.net.named_buffers()]
    return [model.layout(), model.z.dtype, layers, buffers, repr(model.net)]


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a layer was told, beside tensors and layers: numbers, words, and functions by name."""
    plain = (Number, str, NoneType, FunctionType, BuiltinFunctionType)
    own = {name: value for name, value in vars(module).items() if isinstance(value, plain) and name != "training"}
    return {name: getattr(value, "__qualname__", value) for name, value in own.items()}


def _check_trainable(model: nn.Module) -> None:
    """Refuse what is no network, and a network in which there is nothing to fit."""
    _check_network(model)
    if not count_parameters(model):
        raise ValueError(f"{type(model).__name__} has no trainable parameter; there is nothing to fit")


def _check_network(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, got a {type(model).__name__}")
