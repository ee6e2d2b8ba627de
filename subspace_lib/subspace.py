"""theta = theta0 + P z: as a module to read, and as an optimiser to train with."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from subspace_lib import checkpoint
from subspace_lib.checkpoint import CheckpointError
from subspace_lib.memory import keep_freed_memory
from subspace_lib.projections import Projection, from_recipe, has_recipe
from subspace_lib.projections.base import fingerprint, same_fingerprint


class SubspaceModel(nn.Module):
    """A network whose weights are theta = theta0 + P z, and whose only parameter is z.

    z starts at 0, so training starts at theta0, the weights of the network that is given. Each forward pass
    computes theta and cuts it into the network's weights, and autograd runs back through P: the form to read
    and to experiment with. ``SubspaceOptimizer`` trains the same z at the cost of ordinary training.

    Parameters
    ----------
    net : nn.Module
        Any network; it is copied. Tied weights count once, buffers stay buffers, and parameters with
        ``requires_grad=False`` stay as they are.
    P : Projection
        A projection whose D is the number of trainable parameters of ``net``.

    Raises
    ------
    ValueError
        If ``net`` has no trainable parameter, their types or devices differ, or their number is not ``P.D``.

    References
    ----------
    Li et al. (2018), *Measuring the Intrinsic Dimension of Objective Landscapes*, equation 2.
    """

    def __init__(self, net: nn.Module, P: Projection) -> None:
        super().__init__()
        theta0 = _flatten(_trainable(net, P))
        self.P = P
        self.z = nn.Parameter(theta0.new_zeros(P.d))
        self.theta0_seed: int | None = None
        self.register_buffer("theta0", theta0)
        self.net, self._trained, self._frozen = _without_parameters(net)
        self._shapes = {name: p.shape for name, p in net.named_parameters() if p.requires_grad}

    theta0: Tensor

    @classmethod
    def from_seed(cls, factory: Callable[[], nn.Module], P: Projection, seed: int) -> Self:
        """A model whose theta0 can be rebuilt: ``factory()`` called with torch's generator set to ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = factory()
        model = cls(net.to(P.device), P)
        model.theta0_seed = seed
        return model

    def theta(self) -> Tensor:
        """theta0 + P z, of shape (D,)."""
        return self.theta0 + cast(Tensor, self.P(self.z))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output at theta."""
        return torch.func.functional_call(self.net, self.cut(self.theta()), args, kwargs, tie_weights=False)

    def merge(self) -> nn.Module:
        """The network as an ordinary module, with theta written into it as parameters."""
        net = copy.deepcopy(self.net)
        with torch.no_grad():
            weights = {name: weight.clone() for name, weight in self.cut(self.theta()).items()}
        for names in self._trained:
            _put(net, names, nn.Parameter(weights[names[0]]))
        for names in self._frozen:
            _put(net, names, nn.Parameter(net.get_buffer(names[0]), requires_grad=False))
        return net

    def train_form(
        self, optimizer_class: Callable[..., torch.optim.Optimizer], **options: Any
    ) -> tuple[nn.Module, SubspaceOptimizer]:
        """An ordinary network and a ``SubspaceOptimizer`` that stand where this model stands; see ``take``."""
        z = self.z.detach().clone()
        with torch.no_grad():
            self.z.zero_()
            net = self.merge()
            self.z.copy_(z)
        optimizer = SubspaceOptimizer(net, self.P, optimizer_class, **options)
        optimizer.set_z(z)
        return net, optimizer

    @torch.no_grad()
    def take(self, z: Tensor, net: nn.Module) -> None:
        """Take over z and the buffers of the network that ``train_form`` gave, after training."""
        _check_z(z, self.P)
        self.z.copy_(z)
        for name, buffer in net.named_buffers():
            self.net.get_buffer(name).copy_(buffer)

    def save(self, path: str | Path) -> None:
        """Write z, the buffers, the recipe of P and of theta0, and checks on both, as one safetensors file.

        Where theta0 was not made by ``from_seed``, it is written too. The write is atomic.

        Raises
        ------
        ValueError
            If P is not one of ``PROJECTIONS``, so that no recipe can rebuild it.
        """
        if not has_recipe(self.P):
            raise ValueError(f"cannot save a {type(self.P).__name__}: only the families of PROJECTIONS can be rebuilt")
        tensors = {f"buffer.{name}": buffer for name, buffer in self.net.state_dict().items()} | {"z": self.z}
        if self.theta0_seed is None:
            tensors["theta0"] = self.theta0
        about = {
            "P": self.P.recipe(),
            "dtype": str(self.P.dtype).removeprefix("torch."),
            "theta0_seed": self.theta0_seed,
            "theta0": fingerprint(self.theta0),
            "probe": checkpoint.probe(self.P),
            "weights": self.layout(),
        }
        checkpoint.write(Path(path), tensors, about)

    @classmethod
    def load(cls, path: str | Path, factory: Callable[[], nn.Module]) -> Self:
        """Rebuild a saved model: theta0 from ``factory`` and its seed, P from its recipe; refuse what differs.

        Raises
        ------
        CheckpointError
            If the file is damaged, of another version or architecture, or what is rebuilt is not what was saved.
        """
        about, tensors = checkpoint.read(Path(path))
        P = from_recipe(about["P"], getattr(torch, about["dtype"]))
        try:
            model = cls.from_seed(factory, P, about["theta0_seed"] or 0)
        except ValueError as error:
            raise CheckpointError(f"{path} was saved from another architecture: {error}") from None
        model.theta0_seed = about["theta0_seed"]
        for ours, saved in zip(model.layout(), about["weights"], strict=False):
            if ours != saved:
                raise CheckpointError(
                    f"{path} was saved from another architecture: it has {saved} where this has {ours}"
                )
        if "theta0" in tensors:
            model.theta0.copy_(tensors.pop("theta0"))
        for label, rebuilt in (("theta0", fingerprint(model.theta0)), ("probe", checkpoint.probe(P))):
            if not same_fingerprint(about[label], rebuilt):
                what = "theta0" if label == "theta0" else "P"
                raise CheckpointError(
                    f"{path}: {what} rebuilt from its seed is not the one that was saved; "
                    "use the factory and the version of torch it was saved with"
                )
        model.z.data.copy_(tensors.pop("z"))
        try:
            model.net.load_state_dict({name.removeprefix("buffer."): tensor for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{path} was saved from another architecture: {error}") from None
        return model

    def layout(self) -> list[str]:
        """Name and shape of every weight that is trained, in the order of theta."""
        return [f"{name} {tuple(shape)}" for name, shape in self._shapes.items()]

    def cut(self, theta: Tensor) -> dict[str, Tensor]:
        """The pieces of a theta under every name that the network knows them by."""
        pieces = theta.split([shape.numel() for shape in self._shapes.values()])
        views = [piece.view(shape) for shape, piece in zip(self._shapes.values(), pieces, strict=True)]
        return {name: view for names, view in zip(self._trained, views, strict=True) for name in names}


class SubspaceOptimizer(torch.optim.Optimizer):
    """Trains an ordinary network in the subspace theta0 + P z, from any training loop.

    The weights of ``net`` become views of one flat theta. After ``loss.backward()``, ``step()`` computes
    grad_z = P^T grad_theta, lets an ordinary optimiser move z, and writes theta0 + P z into theta. Autograd never
    sees P, and z follows exactly the path that ``SubspaceModel`` would take.

    Parameters
    ----------
    net : nn.Module
        An ordinary network, already on its device; its weights now are theta0.
    P : Projection
        A projection whose D is the number of trainable parameters of ``net``.
    optimizer_class : type
        The optimiser of z, for instance ``torch.optim.Adam``.
    **options
        The optimiser's keywords, for instance ``lr=1e-2``.

    Attributes
    ----------
    z : Tensor
        The d numbers that are trained; write to them with ``set_z``.

    Raises
    ------
    ValueError
        As ``SubspaceModel``; and from ``step``, if the weights of ``net`` were moved since.
    """

    def __init__(
        self,
        net: nn.Module,
        P: Projection,
        optimizer_class: Callable[..., torch.optim.Optimizer],
        **options: Any,
    ) -> None:
        keep_freed_memory()
        self._weights = _trainable(net, P)
        self.P = P
        self.theta0 = _flatten(self._weights)
        self._theta = self.theta0.clone()
        self._gradient = torch.zeros_like(self.theta0)
        pieces = self._theta.split([p.numel() for p in self._weights])
        for p, piece in zip(self._weights, pieces, strict=True):
            p.data = piece.view(p.shape)
        self._gradients = [
            g.view(p.shape)
            for p, g in zip(self._weights, self._gradient.split([p.numel() for p in self._weights]), strict=True)
        ]
        self.z = nn.Parameter(self.theta0.new_zeros(P.d))
        self._inner = optimizer_class([self.z], **options)
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self.param_groups = self._inner.param_groups
        self.state = self._inner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of z; a weight without a gradient counts as zero."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_views()
        for p, gradient in zip(self._weights, self._gradients, strict=True):
            if p.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(p.grad)
        self.z.grad = self.P.pull(self._gradient)
        self._inner.step()
        self._write()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights."""
        for p in self._weights:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()

    @torch.no_grad()
    def set_z(self, z: Tensor) -> None:
        """Put z, and with it theta, somewhere else in the subspace."""
        _check_z(z, self.P)
        self.z.copy_(z)
        self._write()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: z is all that is trained."""
        if any(p is not self.z for p in param_group["params"]):
            raise ValueError(
                "a SubspaceOptimizer trains z alone; train further parameters with an optimiser of their own"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser of z, and z; theta0 and P are the caller's to keep."""
        return {"z": self.z.detach(), "optimizer": self._inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state of ``state_dict``."""
        _check_z(state_dict["z"], self.P)
        self._inner.load_state_dict(state_dict["optimizer"])
        self.param_groups, self.state = self._inner.param_groups, self._inner.state
        self.set_z(state_dict["z"])

    def _write(self) -> None:
        self.P.write(self.theta0, self.z, self._theta)

    def _check_views(self) -> None:
        start = self._theta.data_ptr()
        if any(
            p.data_ptr() != start + g.storage_offset() * g.element_size()
            for p, g in zip(self._weights, self._gradients, strict=True)
        ):
            raise ValueError(
                "the weights of the network were moved or replaced after this SubspaceOptimizer was made; "
                "call .to(), .cuda() or .double() on the network first and make the optimiser after it"
            )


def count_parameters(net: nn.Module) -> int:
    """D: how many numbers of ``net`` are trained."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _trainable(net: nn.Module, P: Projection) -> list[nn.Parameter]:
    """The parameters of ``net`` that P moves, checked against P."""
    if not isinstance(net, nn.Module) or not isinstance(P, Projection):
        raise TypeError(f"expected a network and a Projection, got {type(net).__name__} and {type(P).__name__}")
    D = count_parameters(net)
    weights = [p for p in net.parameters() if p.requires_grad]
    if D == 0:
        raise ValueError(f"{type(net).__name__} has no trainable parameter; a subspace needs weights to move")
    if D != P.D:
        raise ValueError(f"P has D = {P.D} rows but {type(net).__name__} has {D} trainable parameters; use D = {D}")
    for p in weights:
        if (p.dtype, p.device) != (P.dtype, P.device):
            raise ValueError(
                f"P is {P.dtype} on {P.device} but a weight is {p.dtype} on {p.device}; "
                "bring both to one type and device with .to()"
            )
    return weights


def _check_z(z: Tensor, P: Projection) -> None:
    if z.shape != (P.d,):
        raise ValueError(f"z must have shape (d = {P.d},), got {tuple(z.shape)}")


def _flatten(weights: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in weights])


def _without_parameters(net: nn.Module) -> tuple[nn.Module, list[list[str]], list[list[str]]]:
    """A copy of ``net`` in which buffers stand for the parameters, and the names of those.

    Trained ones become empty buffers, which ``functional_call`` fills; frozen ones keep their values. Names
    that share a tensor (tied weights) stand in one list.
    """
    net = copy.deepcopy(net)
    shared: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, p in net.named_parameters(remove_duplicate=False):
        shared[p].append(name)
    trained = [names for p, names in shared.items() if p.requires_grad]
    frozen = [names for p, names in shared.items() if not p.requires_grad]
    for p, names in shared.items():
        _put(net, names, p.new_empty(0) if p.requires_grad else p.detach())
    return net, trained, frozen


def _put(net: nn.Module, names: list[str], value: Tensor) -> None:
    """Make ``value`` the parameter (if it is one) or the buffer of ``net`` that goes by these names."""
    for name in names:
        module_name, _, attribute = name.rpartition(".")
        module = net.get_submodule(module_name)
        delattr(module, attribute)
        if isinstance(value, nn.Parameter):
            module.register_parameter(attribute, value)
        else:
            module.register_buffer(attribute, value, persistent=value.numel() > 0)
