"""theta = theta0 + P z as a module, to read, to save and to experiment with."""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from subspace_lib import checkpoint, checks
from subspace_lib.checkpoint import CheckpointError
from subspace_lib.factored import Factoring
from subspace_lib.networks import (
    copied,
    count_parameters,
    dense,
    emptied,
    filled,
    flat,
    give_buffers,
    hollow,
    kept,
    names_of,
    reaches,
    trained,
)
from subspace_lib.optimizer import SubspaceOptimizer, check_z, probe
from subspace_lib.projections import Projection, from_recipe, has_recipe
from subspace_lib.projections.base import fingerprint, same_fingerprint

__all__ = ["SubspaceModel", "SubspaceOptimizer", "count_parameters"]

_DRAWING = threading.RLock()
"""Held while a theta0 is drawn: torch has one generator for all threads."""
_FILLING = threading.RLock()
"""Held while weights stand in a network for a forward pass: threads that share a model would take them away."""
_REPLACED = (
    "layers of the network were replaced, added or removed after the model was made; make a new one of what it is now"
)
_IN_PLACE = (
    "the forward pass changes weights in place, and the next one computes them anew from z; "
    "change copies of them, or the input"
)


class SubspaceModel(nn.Module):
    """A network whose weights are theta = theta0 + P z, and whose only parameter is z.

    z starts at 0, so training starts at theta0, the weights of the network that is given. Each forward pass
    computes theta and cuts it into the network's weights, and autograd runs back through P: the form to read
    and to experiment with. ``SubspaceOptimizer`` trains the same z at the cost of ordinary training.

    Parameters
    ----------
    net : nn.Module
        Any network; it is copied. Tied weights count once, buffers stay buffers, and parameters with
        ``requires_grad=False`` stay as they are. Weights may be of a shorter type than P, whose type z and theta0 have.
    P : Projection
        A projection whose D is the number of trainable parameters of ``net``.

    Raises
    ------
    ValueError
        If ``net`` has no trainable parameter, their number is not ``P.D``, P cannot hold their type, or the network
        cannot be copied and taken apart, as TorchScript cannot; and from the first forward pass, if it reaches a
        weight in another way than as an attribute of its layer. ``SubspaceOptimizer`` can train most of these.

    References
    ----------
    Li et al. (2018), *Measuring the Intrinsic Dimension of Objective Landscapes*, equation 2.
    """

    def __init__(self, net: nn.Module, P: Projection) -> None:
        super().__init__()
        weights = trained(net, P)
        for name, p in weights.items():
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                raise ValueError(
                    f"the weight {name!r} has a hook on its gradient, which no copy of the network would call; "
                    "SubspaceOptimizer trains the network itself"
                )
        theta0 = flat(weights.values(), P.dtype)
        self.P = P
        self.z = nn.Parameter(theta0.new_zeros(P.d))
        self.theta0_seed: int | None = None
        self._made: dict[str, tuple[Any, ...]] = {}
        self._drawn: tuple[torch.dtype, int, list[float]] | None = None
        self.factoring: Factoring | None = None
        self.register_buffer("theta0", theta0)
        self._plain = (emptied(net),)  # in a tuple, so that it is no part of this module
        self.net = hollow(self._plain[0], net)
        self._originals = [weakref.ref(p) for p in weights.values()]  # until the first forward pass has been looked at
        names = names_of(net)
        self._trained = [names[p] for p in weights.values()]
        self._frozen = [names for p, names in names.items() if not p.requires_grad]
        self._order = [name for name, _ in net.named_parameters(remove_duplicate=False)]
        self._shapes = {name: p.shape for name, p in weights.items()}

    theta0: Tensor

    @classmethod
    def from_seed(cls, factory: Callable[[], nn.Module], P: Projection, seed: int) -> Self:
        """A model whose theta0 can be rebuilt: ``factory()`` called with torch's generator set to ``seed``.

        Threads that call this wait for each other, because torch has one generator for all of them; nothing else may
        draw from it meanwhile.

        Raises
        ------
        TypeError, ValueError
            If ``seed`` is no whole number from 0 to 2**32 - 1, and as ``SubspaceModel``.
        """
        seed = checks.seed("seed", seed)
        return cls(_draw(factory, seed).to(P.device), P)._drawn_from(seed)

    def _drawn_from(self, seed: int) -> Self:
        """Remember the seed, and what the factory made beside theta0, which need not be saved."""
        self.theta0_seed = seed
        self._drawn = self.theta0.dtype, checkpoint.checksum({"": self.theta0}), fingerprint(self.theta0)
        self._made = {name: _form(tensor) for name, tensor in kept(self.net).items()}
        self._made |= dict.fromkeys(_empty_places(self.net), ())
        return self

    def _is_drawn(self) -> bool:
        """Whether theta0 is still what its seed gives: no bit was changed, but where it has another type now."""
        if self._drawn is None:
            return False
        dtype, checksum, mark = self._drawn
        if self.theta0.dtype == dtype:
            return checkpoint.checksum({"": self.theta0}) == checksum
        return same_fingerprint(fingerprint(self.theta0), mark)

    def theta(self) -> Tensor:
        """theta0 + P z, of shape (D,)."""
        return self.theta0 + cast(Tensor, self.P(self.z))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output at theta."""
        theta = self._formed()
        version = _version(theta)
        try:
            with contextlib.nullcontext() if torch.compiler.is_compiling() else _FILLING, self._filled(theta):
                output = self.net(*args, **kwargs)
        except RuntimeError as error:
            if _version(theta) != version:
                raise ValueError(_IN_PLACE) from error
            raise
        if _version(theta) != version:
            raise ValueError(_IN_PLACE)
        if self._originals and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if reaches(output, [original() for original in self._originals]):
                raise ValueError(
                    f"{type(self.net).__name__} uses weights of the network that SubspaceModel has copied, which it "
                    "reaches in another way than through its layers; SubspaceOptimizer trains the network itself"
                )
            self._originals = []
        return output

    def _formed(self) -> Tensor:
        """What is formed of theta0 + P z for a forward pass: all of it, unless layers are factored."""
        return self.theta() if self.factoring is None else self.factoring.theta(self.P, self.theta0, self.z)

    @contextlib.contextmanager
    def _filled(self, theta: Tensor) -> Iterator[None]:
        """For a while, the network has its weights; or the factors of those that are not formed."""
        plan = self.factoring
        weights = self.cut(theta, None if plan is None else plan.formed)
        order = self._order if plan is None else [name for name in self._order if name not in plan.factored]
        factors = contextlib.nullcontext() if plan is None else plan.placed(self.net, self.P, self.theta0, self.z)
        with filled(self.net, {name: self._value(name, weights) for name in order}), factors:
            yield

    def factored(self) -> Self:
        """A copy of the model that never forms the weights of a layer whose block of P has the layer's shape.

        The layer computes x Theta0^T + ((x B) Z^T) A^T in place of x Theta^T, and no gradient of its weights is made.
        ``LayerwiseProjection.over(net, {"0.*": ("kronecker", (a, b)), ...})`` makes such blocks, for every ``Linear``
        and ``Conv2d``; all others are formed as ever. z, state, files and ``merge`` are those of the model. ``fit``
        moves z by autograd, and keeps the products of a linear layer that comes first with all data that are tensors.

        Raises
        ------
        ValueError
            If no block has the shape of a layer, or one has and its layer is another than these, or tied, or of
            another type than P; the message names the weight.

        Examples
        --------
        >>> net = nn.Sequential(nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3))
        >>> P = LayerwiseProjection.over(net, {"0.*": ("kronecker", (2, 5)), "2.*": ("kronecker", (3, 4))})
        >>> model = SubspaceModel(net, P).factored()
        >>> len(model.z), model(torch.ones(1, 20)).shape
        (22, torch.Size([1, 3]))
        """
        model = copy.deepcopy(self)
        if model.factoring is None:
            model.factoring = Factoring(model.net, model.P, model._shapes, model._trained)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """A copy has nothing to do with the weights of the network that was given."""
        return vars(self) | {"_originals": []}

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The network as an ordinary module, with theta written into it as parameters."""
        self._check_layers()
        net = copied(self._plain[0])
        weights = self.cut(self.theta())
        for name, p in net.named_parameters():
            p.data = self._value(name, weights).detach().clone()
        for name, module in net.named_modules():
            module.training = self.net.get_submodule(name).training
        give_buffers(self.net, net)
        return net

    def _check_layers(self) -> None:
        """Refuse a network that is no longer the one that was given."""
        now, then = ({name for name, _ in net.named_modules()} for net in (self.net, self._plain[0]))
        if (changed := now ^ then) or next(self.net.parameters(), None) is not None:
            raise ValueError(f"{min(changed, default='a weight')!r}: {_REPLACED}")

    def train_form(
        self, optimizer_class: Callable[..., torch.optim.Optimizer], **options: Any
    ) -> tuple[nn.Module, SubspaceOptimizer]:
        """An ordinary network and a ``SubspaceOptimizer`` that stand where this model stands; see ``take``."""
        net = self.merge()
        optimizer = SubspaceOptimizer(net, self.P, optimizer_class, **options)
        optimizer.theta0.copy_(self.theta0)
        optimizer.set_z(self.z.detach())
        return net, optimizer

    @torch.no_grad()
    def take(self, z: Tensor, net: nn.Module) -> None:
        """Take over z and the buffers of the network that ``train_form`` gave, after training."""
        check_z(z, self.P)
        self.z.copy_(z)
        give_buffers(net, self.net)

    def save(self, path: str | Path) -> None:
        """Write z, the recipe of P and of theta0, checks on both, and buffers, as one safetensors file.

        What ``from_seed`` rebuilds is not written: theta0, and buffers and frozen weights that are still as its
        factory made them. The write is atomic.

        Raises
        ------
        ValueError
            If P is not one of ``PROJECTIONS``, so that no recipe can rebuild it, theta0 is not finite, or the extra
            state of a layer is neither a tensor nor plain data.
        """
        if not has_recipe(self.P):
            raise ValueError(f"cannot save a {type(self.P).__name__}: only the families of PROJECTIONS can be rebuilt")
        self._check_layers()
        for name, weight in self.cut(self.theta0).items():
            if not weight.isfinite().all():
                raise ValueError(
                    f"cannot save a theta0 that is infinite or missing in {name!r}: load could not compare it"
                )
        seeded = self._is_drawn()
        beside = kept(self.net)
        if seeded:
            self._check_buffers(beside)
        made = [
            name
            for name, t in beside.items()
            if seeded and self._made[name] == _form(t) and _marks([t]).isfinite().all()
        ]
        for name in beside.keys() - set(made):
            if beside[name].layout is not torch.strided:
                raise ValueError(
                    f"cannot save the buffer {name!r}, which is sparse; keep it dense, or register it with "
                    "persistent=False and let the factory make it"
                )
        tensors = {f"buffer.{name}": tensor for name, tensor in beside.items() if name not in made} | {"z": self.z}
        if made:
            tensors["made"] = _marks(beside[name] for name in made)
        if not seeded:
            tensors["theta0"] = self.theta0
        extra = {}
        for name, module in _with_extra_state(self.net).items():
            state = module.get_extra_state()
            if type(module).set_extra_state is nn.Module.set_extra_state:
                raise ValueError(f"cannot save {name!r}: it has extra state to give, but no set_extra_state to take it")
            if isinstance(state, Tensor) and state.layout is torch.strided:
                tensors[f"extra.{name}"] = state
            elif checkpoint.is_plain(state):
                extra[name] = state
            else:
                kind = type(state).__name__
                raise ValueError(f"cannot save the extra state of {name!r}, a {kind}; make it a tensor or plain data")
        about = {
            "P": self.P.recipe(),
            "dtype": checkpoint.name_of(self.P.dtype),
            "types": self._types(),
            "theta0_seed": self.theta0_seed if seeded else None,
            "theta0": fingerprint(self.theta0),
            "probe": probe(self.P),
            "weights": self.layout(),
            "extra": extra,
        }
        checkpoint.write(Path(path), tensors, about)

    def _check_buffers(self, beside: dict[str, Tensor]) -> None:
        """Refuse buffers into which a network of the factory's could not be brought."""
        for name, form in self._made.items():
            if form and (name not in beside or _form(beside[name])[1:] != form[1:]):
                raise ValueError(
                    f"cannot save the buffer {name!r}: it is gone, or of another shape or kind than the factory makes "
                    "it; let the factory make it as it is now, or register it with persistent=False"
                )
        if new := beside.keys() - self._made.keys():
            raise ValueError(f"cannot save the buffer {min(new)!r}, which the factory does not make; register it there")

    @classmethod
    def load(cls, path: str | Path, factory: Callable[[], nn.Module]) -> Self:
        """Rebuild a saved model: theta0 from ``factory`` and its seed, P from its recipe; refuse what differs.

        Raises
        ------
        CheckpointError
            If the file is damaged, of another version or architecture, or what is rebuilt is not what was saved.
        """
        about, tensors = checkpoint.read(Path(path))
        try:
            return cls._rebuilt(about, tensors, factory)
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}") from error.__cause__

    @classmethod
    def _rebuilt(cls, about: dict[str, Any], tensors: dict[str, Tensor], factory: Callable[[], nn.Module]) -> Self:
        net = _draw(factory, (about["theta0_seed"] or 0) % 2**32).cpu()
        D, d = count_parameters(net), tensors["z"].numel()
        if about["P"].get("D", D) != D:
            raise CheckpointError(
                f"was saved from another architecture: P has D = {about['P']['D']} rows "
                f"but {type(net).__name__} has {D} trainable parameters"
            )
        for ours, saved in zip_longest(_layout(net), about["weights"]):
            if ours != saved:
                raise CheckpointError(f"was saved from another architecture: it has {saved} where this has {ours}")
        checkpoint.check_recipe(about["P"], D, d)
        model = cls._with_P(net, about)
        if about["theta0_seed"] is not None:
            model._drawn_from(about["theta0_seed"])
        if (theta0 := tensors.pop("theta0", None)) is not None:
            checkpoint.fill("theta0", model.theta0, theta0.to(model.theta0.dtype))
        if not same_fingerprint(about["theta0"], fingerprint(model.theta0)):
            raise CheckpointError(f"cannot be rebuilt: theta0 {_NOT_THE_SAME}")
        checkpoint.fill("z", model.z.data, tensors.pop("z").to(model.z.dtype))
        model._take_beside(about, tensors)
        return model

    @classmethod
    def _with_P(cls, net: nn.Module, about: dict[str, Any]) -> Self:
        """The model with the P of the file, in whichever type it was drawn before the model was converted."""
        dtype = checkpoint.TYPES[about["dtype"]]
        problem, found = "", []
        for drawn in dict.fromkeys((dtype, torch.float32, torch.float64)):
            try:
                model = cls(net, from_recipe(about["P"], drawn))
                if drawn != dtype or about.get("types", model._types()) != model._types():
                    model.to(dtype)
                mark = probe(model.P)
            except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
                problem = problem or f"names a P that cannot be used: {error}"
                continue
            if same_fingerprint(about["probe"], mark) and about.get("types", model._types()) == model._types():
                if mark == about["probe"]:
                    return model
                found.append(model)
        if not found:
            raise CheckpointError(problem or f"cannot be rebuilt: P {_NOT_THE_SAME}")
        return found[0]

    def _take_beside(self, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take buffers, frozen weights and extra state out of the file; check those that the factory made."""
        made = tensors.pop("made", torch.empty(0, 3, device="cpu"))
        beside = kept(self.net)
        for name, (module, attribute) in _empty_places(self.net).items():
            module._buffers[attribute] = tensors.pop(f"buffer.{name}", None)
        absent = [name for name in beside if f"buffer.{name}" not in tensors]
        if made.shape != (len(absent), 3):
            raise CheckpointError(f"was saved from another architecture: it has not the buffers {absent}")
        for name, ours, saved in zip(
            absent, _marks(beside[name] for name in absent).tolist(), made.tolist(), strict=True
        ):
            if not same_fingerprint(ours, saved):
                raise CheckpointError(f"cannot be rebuilt: {name!r} {_NOT_THE_SAME}")
        modules = _with_extra_state(self.net)
        known = {f"buffer.{name}" for name, _ in self.net.named_buffers(remove_duplicate=False)}
        unknown = tensors.keys() - known - {f"extra.{name}" for name in modules}
        extra = about.get("extra", {}) | {
            n.removeprefix("extra."): t for n, t in tensors.items() if n.startswith("extra.")
        }
        if unknown or extra.keys() != modules.keys():
            different = sorted(unknown | (extra.keys() ^ modules.keys()))[0]
            raise CheckpointError(f"was saved from another architecture: {different!r} is not in both")
        for name, buffer in beside.items():
            if name not in absent:
                checkpoint.fill(name, buffer, tensors[f"buffer.{name}"])
        for name, state in extra.items():
            modules[name].set_extra_state(state)

    def get_extra_state(self) -> Tensor:
        """A mark of P, which ``load_state_dict`` compares: z means nothing without its P."""
        return torch.tensor(probe(self.P), dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to set: the mark was compared before anything was loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        mark = state_dict.get(f"{prefix}_extra_state")
        if mark is not None and not same_fingerprint(mark.tolist(), probe(self.P)):
            raise ValueError("this z belongs to another P; draw P with the family, seed and options it was saved with")
        super()._load_from_state_dict(state_dict, prefix, *others)

    def layout(self) -> list[str]:
        """Name and shape of every weight that is trained, in the order of theta."""
        return [f"{name} {tuple(shape)}" for name, shape in self._shapes.items()]

    def cut(self, theta: Tensor, only: Collection[str] | None = None) -> dict[str, Tensor]:
        """The pieces of a theta under every name that the network knows them by, in the types of its weights.

        With ``only``, theta has the weights of these names alone.
        """
        weights = [
            (shape, names)
            for (name, shape), names in zip(self._shapes.items(), self._trained, strict=True)
            if only is None or name in only
        ]
        pieces = theta.split([shape.numel() for shape, _ in weights])
        try:
            views = [
                piece.view(shape).to(self.net.get_buffer(names[0]).dtype)
                for piece, (shape, names) in zip(pieces, weights, strict=True)
            ]
        except AttributeError as error:
            raise ValueError(f"{error}: {_REPLACED}") from error
        return {name: view for (_, names), view in zip(weights, views, strict=True) for name in names}

    def _value(self, name: str, weights: dict[str, Tensor]) -> Tensor:
        return weights[name] if name in weights else self.net.get_buffer(name)

    def _types(self) -> list[str]:
        """The types that the trained weights have, in the order of theta; one stands for all that are equal."""
        types = [checkpoint.name_of(self.net.get_buffer(names[0]).dtype) for names in self._trained]
        return types if len(set(types)) > 1 else types[:1]


_NOT_THE_SAME = (
    "rebuilt from its seed is not the one that was saved; use the factory and the version of torch it was saved with"
)


def _draw(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with _DRAWING, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if isinstance(factory, nn.Module) or not callable(factory):
            raise TypeError(f"factory must be a function that makes a network, got a {type(factory).__name__}")
        torch.manual_seed(seed)
        net = factory()
        if not isinstance(net, nn.Module):
            raise TypeError(f"factory must make a network, but made a {type(net).__name__}")
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_meta:
                raise ValueError(f"{name!r} is on the device 'meta', which holds no numbers; make it on 'cpu'")
        return net


def _form(buffer: Tensor) -> tuple[Any, ...]:
    """The checksum of a buffer, and what must be the same for another to be brought to it."""
    return checkpoint.checksum({"": buffer}), buffer.shape, buffer.is_floating_point()


def _version(theta: Tensor) -> int:
    """How often theta was changed in place; 0 where nobody counts."""
    return 0 if torch.compiler.is_compiling() or theta.is_inference() else theta._version


def _layout(net: nn.Module) -> list[str]:
    return [f"{name} {tuple(p.shape)}" for name, p in net.named_parameters() if p.requires_grad]


def _marks(tensors: Iterable[Tensor]) -> Tensor:
    """A fingerprint of each tensor, of shape (tensors, 3)."""
    real = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in map(dense, tensors))
    return torch.tensor([fingerprint(tensor) for tensor in real], dtype=torch.float64, device="cpu").view(-1, 3)


def _empty_places(net: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The buffers that are registered as None, to be filled later."""
    return {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in net.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is None
    }


def _with_extra_state(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that keep more than tensors."""
    plain = nn.Module.get_extra_state
    return {name: module for name, module in net.named_modules() if type(module).get_extra_state is not plain}
