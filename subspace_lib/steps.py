"""What the loop of training.py moves: one network, one subspace, or many subspaces side by side."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subspace_lib import checks
from subspace_lib.data import batches_of
from subspace_lib.networks import Absent, dense, give_buffers, put
from subspace_lib.optimizer import fused, optimizer_of
from subspace_lib.products import Products
from subspace_lib.projections import Projection
from subspace_lib.subspace import SubspaceModel

Measure = Callable[[Any, Tensor], Any]
"""A loss or a metric: from the network's outputs on a batch and its targets to the mean over the batch."""

State = dict[str, Tensor]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NO_CLOSURE = (
    "{} evaluates the loss several times a step, which fit does not; give its "
    "step a closure in a loop of your own, where SubspaceOptimizer takes one as well"
)
_OPTIONAL = inspect.Parameter("closure", inspect.Parameter.KEYWORD_ONLY, default=None)


IGNORED = -100
"""The class that PyTorch's cross-entropy leaves out by default."""


def accuracy(outputs: Tensor, targets: Tensor, ignored: int = IGNORED) -> Tensor:
    """Share of the rows whose largest output is at the target: a class, if it is not ignored, or the most probable.

    Raises
    ------
    ValueError
        If there is no second output, beside which one could be the largest.
    """
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"accuracy needs an output for each class, two at least, got outputs of shape {tuple(outputs.shape)}; "
            "pass metric=, say lambda outputs, targets: ((outputs > 0) == (targets > 0)).double().mean()"
        )
    classes = targets.argmax(1) if targets.is_floating_point() else targets
    counted = classes != ignored
    return ((outputs.argmax(1) == classes) & counted).double().sum() / counted.sum()


class Runs(ABC):
    """One run, or several over one stream of batches, as the loop knows them.

    Parameters
    ----------
    net : nn.Module
        The network whose modes all runs follow.
    loss, metric : callable
        Without a metric there is accuracy for cross-entropy, and nothing for another loss.
    optimizer : torch.optim.Optimizer, optional
        Needed to train.
    """

    count = 1
    maps: Sequence[Projection] = ()
    """What maps each z to the weights, for runs in subspaces."""

    def __init__(
        self, net: nn.Module, loss: Measure, metric: Measure | None, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        checks.function("loss", loss)
        if metric is not None:
            checks.function("metric", metric)
        for measure in (loss, metric):
            if getattr(measure, "reduction", None) == "sum":
                raise ValueError(f"{type(measure).__name__} gives a sum, allowed the mean over a batch; use 'mean'")
        self.net = net
        self.loss = loss
        self.ignored: int | None = getattr(loss, "ignore_index", IGNORED) if is_cross_entropy(loss) else None
        self.metric = metric
        if metric is None and self.ignored is not None:
            self.metric = functools.partial(accuracy, ignored=self.ignored)
        self.convolves = any(isinstance(module, _CONVOLUTIONS) for module in net.modules())
        self.resting = [module for module in net.modules() if net.training and not module.training]
        self.weights = {name: p for name, p in net.named_parameters() if p.requires_grad}
        if optimizer is not None:
            if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
                raise ValueError(f"{type(loss).__name__} has weights of its own, which nothing trains; freeze them")
            inner = getattr(optimizer, "_inner", optimizer)
            if inspect.signature(inner.step).parameters.get("closure", _OPTIONAL).default is inspect.Parameter.empty:
                raise ValueError(_NO_CLOSURE.format(_name(optimizer)))
            self.optimizer = optimizer
            self.rates = [group["lr"] for group in optimizer.param_groups]

    @abstractmethod
    def each(self, measure: Measure, inputs: Tensor, targets: Tensor) -> Tensor:
        """A measure of every run on one batch, of shape (runs, ...); of a single run, its own shape."""

    @abstractmethod
    def pull(self, losses: Tensor) -> None:
        """Put the gradient of the losses where the optimiser looks for it."""

    @abstractmethod
    def state(self, i: int) -> State:
        """A copy of what training changes in run i."""

    @abstractmethod
    def restore(self, i: int, state: State) -> None:
        """Put run i, and the model that was given, where ``state`` found it."""

    def show(self, i: int) -> None:  # noqa: B027
        """Let the model that was given stand where run i is now, if it is not what is trained."""

    def heed(self, i: int) -> None:  # noqa: B027
        """Let run i go on from where somebody has put the model that was given, since ``show``."""

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step of every run on one batch; gives the loss of each."""
        losses = self.each(self.loss, inputs, targets)
        self.pull(losses)
        try:
            self.optimizer.step()
        except (AssertionError, TypeError) as error:
            if isinstance(error, AssertionError) or any(word in str(error) for word in ("closure", "NoneType")):
                raise ValueError(f"{_NO_CLOSURE.format(_name(self.optimizer))} (it says: {error})") from error
            raise
        return losses.detach()

    def counted(self, targets: Tensor) -> int:
        """Over how many targets the loss is a mean: all rows, but for a class that cross-entropy ignores."""
        if self.ignored is None or targets.is_floating_point():
            return len(targets)
        return int((targets != self.ignored).sum())

    def set_rate(self, share: float) -> None:
        """Set every learning rate to a share of what it was."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate

    def laid_out(self, images: Tensor) -> Tensor:
        """Images with their channels last, in which convolutions on a CPU run up to twice as fast.

        One channel lies in both orders at once, so its strides are written out: without them the whole network goes on
        in the other order (LeNet on MNIST: .74 of a step with them). Gradients agree to 1e-6, but where the two largest
        numbers of a pooling window are equal up to rounding, another one may win: one such window in a batch of 128
        moves those of the convolutions by up to 1e-3, whichever order is used.
        """
        if images.ndim == 4 and images.device.type == "cpu" and self.convolves:
            _, channels, height, width = images.shape
            strides = (height * width * channels, 1, width * channels, channels)
            return images.contiguous(memory_format=torch.channels_last).as_strided(images.shape, strides)
        return images

    def train(self) -> None:
        """Training mode, but for modules that the caller put in evaluation mode inside a training network.

        Raises
        ------
        ValueError
            If there is a weight to train that the optimiser was not given.
        """
        given = set(self.weights.values())
        for name, p in self.net.named_parameters():
            if p.requires_grad and p not in given:
                raise ValueError(
                    f"{name!r} was thawed, replaced or added while its network is trained, by an optimiser that holds "
                    "the weights it began with; end here and go on with another call of fit"
                )
        self.net.train()
        for module in self.resting:
            module.training = False

    @torch.no_grad()
    def evaluate(self, rows: Any, size: int = 1000) -> list[tuple[float, float]]:
        """Mean loss and metric of every run in evaluation mode; the metric is nan where there is none, or no loss."""

        def both(outputs: Any, targets: Tensor) -> Tensor:
            loss = loss_of(self.loss, outputs, targets)
            metric = math.nan if self.metric is None else self.metric(outputs, targets)
            return torch.stack([one_number(one, targets.device) for one in (loss, metric)])

        total, count = torch.zeros(self.count, 2, dtype=torch.float64, device=(device := device_of(self.net))), 0
        with modes_kept(self.net):
            self.net.eval()
            for inputs, targets in batches_of(rows, size, device):
                if rows_counted := self.counted(targets):
                    total += self.each(both, inputs, targets) * rows_counted
                    count += rows_counted
        if not count:
            raise ValueError("there is no row to evaluate on, allowed 1 or more")
        means: list[list[float]] = (total / count).tolist()
        return [(loss, math.nan if math.isnan(loss) else metric) for loss, metric in means]


class One(Runs):
    """An ordinary network: all its weights are trained."""

    def each(self, measure: Measure, inputs: Tensor, targets: Tensor) -> Tensor:
        with types_explained(self.net, inputs):
            outputs = self.net(self.laid_out(inputs))
        value: Tensor = measure(outputs, targets)
        return value

    def pull(self, losses: Tensor) -> None:
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in weights:
            p.grad = None  # as zero_grad does, in 4 microseconds for 50
        losses.backward()
        if self.optimizer.defaults.get("fused"):  # and takes dense gradients alone
            for p in (p for p in weights if p.grad is not None):
                p.grad = dense(p.grad)

    def changing(self) -> State:
        """What training changes, by name."""
        return self.weights | dict(self.net.named_buffers())

    def state(self, i: int) -> State:
        return {name: tensor.detach().clone() for name, tensor in self.changing().items()}

    @torch.no_grad()
    def restore(self, i: int, state: State) -> None:
        for name, tensor in self.changing().items():
            if name in state:
                put(tensor, state[name])


class OneSubspace(One):
    """A SubspaceModel, trained in the form that its ``train_form`` gives; the model follows on ``restore``."""

    def __init__(
        self, model: SubspaceModel, loss: Measure, metric: Measure | None, optimizer_class: Any, **options: Any
    ) -> None:
        net, self.subspace = model.train_form(optimizer_class, **options)
        super().__init__(net, loss, metric, self.subspace)
        self.model, self.maps = model, [model.P]

    def changing(self) -> State:
        return dict(self.net.named_buffers())

    def state(self, i: int) -> State:
        return super().state(i) | {"": self.subspace.z.detach().clone()}

    def restore(self, i: int, state: State) -> None:
        super().restore(i, state)
        self.subspace.set_z(state[""])
        self.show(i)

    def show(self, i: int) -> None:
        self.model.take(self.subspace.z.detach(), self.net)

    def heed(self, i: int) -> None:
        if not torch.equal(self.model.z, self.subspace.z):
            self.subspace.set_z(self.model.z.detach())
        give_buffers(self.model.net, self.net)


class OneFactored(One):
    """A factored SubspaceModel, whose z autograd moves; its first layer takes products with the data, where it can."""

    def __init__(
        self, products: Products, loss: Measure, metric: Measure | None, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(products.model, loss, metric, optimizer)
        self.products = products

    def changing(self) -> State:
        model = self.products.model
        held = {name: b for name, b in model.net.named_buffers() if not isinstance(b, Absent)}
        return held | {"": model.z}

    def train(self) -> None:
        self.products.check()
        super().train()


class SideBySide(Runs):
    """Subspaces of one architecture: theta of shape (runs, D), the buffers alike, and one z a run."""

    def __init__(
        self,
        models: Sequence[SubspaceModel],
        loss: Measure,
        metric: Measure | None,
        optimizer_class: Callable[..., torch.optim.Optimizer],
        rates: Sequence[float],
    ) -> None:
        groups = [{"params": [model.z], "lr": rate} for model, rate in zip(models, rates, strict=True)]
        options = {"lr": rates[0], **fused(optimizer_class, [model.z for model in models])}
        optimizer = optimizer_of(groups, optimizer_class, options)
        super().__init__(copy.deepcopy(models[0].net), loss, metric, optimizer)
        self.models, self.count, self.maps = models, len(models), [model.P for model in models]
        self.theta0 = torch.stack([model.theta0 for model in models])
        self.theta = self.theta0.clone().requires_grad_()
        weights = models[0].cut(self.theta0[0])
        names = [name for name, _ in self.net.named_buffers() if name not in weights]
        self.buffers = {name: torch.stack([model.net.get_buffer(name) for model in models]) for name in names}
        for i in range(self.count):
            self._write(i)

    def each(self, measure: Measure, inputs: Tensor, targets: Tensor) -> Tensor:
        def call(theta: Tensor, buffers: State) -> Any:
            tensors = self.models[0].cut(theta) | buffers
            outputs = torch.func.functional_call(self.net, tensors, (x,), tie_weights=False)
            for name, buffer in buffers.items():
                if tensors[name] is not buffer:  # the network has put another tensor in its place
                    buffer.copy_(tensors[name].detach())
            return measure(outputs, targets)

        x = self.laid_out(inputs)
        with types_explained(self.net, inputs):
            values: Tensor = torch.vmap(call, randomness="different")(self.theta, self.buffers)
        return values

    def pull(self, losses: Tensor) -> None:
        (gradients,) = torch.autograd.grad(losses.sum(), self.theta)
        for model, gradient in zip(self.models, gradients, strict=True):
            model.z.grad = model.P.pull(gradient)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().step(inputs, targets)
        for i in range(self.count):
            self._write(i)
        return losses

    def state(self, i: int) -> State:
        return {"": self.models[i].z.detach().clone()} | {name: b[i].clone() for name, b in self.buffers.items()}

    @torch.no_grad()
    def restore(self, i: int, state: State) -> None:
        model = self.models[i]
        model.z.copy_(state[""])
        model.z.grad = None
        for name, buffer in self.buffers.items():
            buffer[i] = state[name]
        self.show(i)
        self._write(i)

    @torch.no_grad()
    def show(self, i: int) -> None:
        for name, buffer in self.buffers.items():
            self.models[i].net.get_buffer(name).copy_(buffer[i])

    @torch.no_grad()
    def heed(self, i: int) -> None:
        for name, buffer in self.buffers.items():
            buffer[i] = self.models[i].net.get_buffer(name)
        self._write(i)

    @torch.no_grad()
    def _write(self, i: int) -> None:
        self.models[i].P.write(self.theta0[i], self.models[i].z, self.theta[i])


@contextlib.contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Leave every module in the mode, training or evaluation, in which it was found."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def types_explained(net: nn.Module, inputs: Tensor) -> Iterator[None]:
    """What a network says to inputs of another type than its weights, in words of ours.

    Raises
    ------
    TypeError
        If that is what it says.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        kinds = [tensor.dtype for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()]
        kind = kinds[0] if kinds else inputs.dtype
        if inputs.dtype == kind or "type" not in said:
            raise
        raise TypeError(
            f"the inputs are {inputs.dtype}, the weights {kind}, and the network does not take them ({said}); "
            "convert the inputs, for instance x.float()"
        ) from error


def device_of(net: nn.Module) -> torch.device:
    """The device of a network's first tensor; the CPU's for one without."""
    return next((tensor.device for tensor in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(getattr(optimizer, "_inner", optimizer)).__name__


def is_cross_entropy(loss: Measure) -> bool:
    """Whether the loss is PyTorch's, as a function or as a module."""
    return loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def loss_of(loss: Measure, outputs: Any, targets: Tensor) -> Any:
    """The loss; in words of ours if it does not take such outputs, or would stretch them to the targets' shape.

    Raises
    ------
    TypeError, ValueError
        If that is so.
    """
    kind = type(outputs).__name__
    if is_cross_entropy(loss) and not isinstance(outputs, Tensor):
        raise TypeError(
            f"the network gives a {kind}, and cross_entropy takes a tensor of scores; "
            "pass loss=, a function of (outputs, targets)"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")
            return loss(outputs, targets)
    except (TypeError, AttributeError) as error:
        if isinstance(outputs, Tensor):
            raise
        raise TypeError(f"the network gives a {kind}, and the loss does not take it ({error}); pass another") from error
    except UserWarning:
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)} for {len(targets)} rows; "
            "give both one shape"
        ) from None


def one_number(value: Any, device: torch.device) -> Tensor:
    """What a loss or a metric gave, in float64."""
    try:
        number = torch.as_tensor(value, device=device).double()
    except (TypeError, RuntimeError, ValueError):
        number = torch.empty(0)
    if number.ndim:
        raise TypeError(f"a loss or metric gives {value!r}, allowed one number: the mean over the batch")
    return number
