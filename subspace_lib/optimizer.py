"""SubspaceOptimizer: theta = theta0 + P z, trained from anybody's loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from subspace_lib import checks
from subspace_lib.memory import keep_freed_memory
from subspace_lib.networks import dense, flat, trained
from subspace_lib.projections import Projection
from subspace_lib.projections.base import fingerprint, same_fingerprint


class SubspaceOptimizer(torch.optim.Optimizer):
    """Trains an ordinary network in the subspace theta0 + P z, from any training loop.

    The weights of ``net`` become views of one flat theta. After ``loss.backward()``, ``step()`` computes
    grad_z = P^T grad_theta, lets an ordinary optimiser move z, and writes theta0 + P z into theta. Autograd never
    sees P, and z follows exactly the path that ``SubspaceModel`` would take.

    To whoever holds it, it is an ordinary optimiser of the network's weights: gradients are unscaled, clipped and
    forgotten where they are, and the numbers of its one group (lr, betas, ...) are those of the optimiser of z.

    Weights that were changed from outside since the last step (a state was loaded, an average swapped in) are
    taken into z where they still lie in the subspace, and refused elsewhere. On a GPU, only changes that PyTorch
    counts are seen: not those through ``.data``.

    Parameters
    ----------
    net : nn.Module
        An ordinary network, already on its device; its weights now are theta0. They may be of a shorter type
        than P: z and theta0 have P's type, and theta0 + P z is written rounded.
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
        As ``SubspaceModel``; and from ``step``, if no weight has a gradient, or if the weights of ``net`` were moved,
        replaced, frozen, or changed to what no z can give.

    Examples
    --------
    >>> net = nn.Linear(20, 3)
    >>> optimizer = SubspaceOptimizer(net, make_projection("one_hot", 63, 10), torch.optim.Adam, lr=0.1)
    >>> net(torch.ones(1, 20)).sum().backward()
    >>> optimizer.step()
    >>> round(float(optimizer.z.detach().abs().max()), 3)
    0.1
    """

    def __init__(
        self,
        net: nn.Module,
        P: Projection,
        optimizer_class: Callable[..., torch.optim.Optimizer],
        **options: Any,
    ) -> None:
        weights = trained(net, P).values()
        self.net, self.P = net, P
        self.theta0 = flat(weights, P.dtype)
        self.z = nn.Parameter(self.theta0.new_zeros(P.d))
        self._inner = _of_z(self.z, optimizer_class, options)
        super().__init__([self._inner.param_groups[0] | {"params": list(weights)}], self._inner.defaults)
        self.state = self._inner.state
        keep_freed_memory()
        self._attach()
        self._write()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of z; a weight without a gradient counts as zero."""
        if torch.is_inference_mode_enabled():
            raise ValueError("a step in inference mode would spoil z for later steps; call step() outside of it")
        self._notice_changes()
        self._hand_over()
        try:
            if closure is None:
                self._pull()
                loss = self._move()
            else:
                loss = self._move_by(closure)
            self.param_groups[0].update(_numbers(self._inner.param_groups[0]))
            self._write()
        except (KeyboardInterrupt, SystemExit):  # z may have moved, and whoever saves both now wants them to agree
            self._write()
            raise
        return loss

    def _move_by(self, closure: Callable[[], Any]) -> Any:
        """A step of the optimiser of z that evaluates the loss itself."""
        self.z.grad = None
        if any(p.grad is not None for p in self._weights):
            self._pull()  # sharpness-aware minimisation begins with the gradient that it finds

        @torch.no_grad()
        def evaluate() -> Any:
            self._write()  # the optimiser of z may have moved it
            if self.z.grad is None or not self.z.grad.any():  # and forgotten its gradient
                self.zero_grad()
            with torch.enable_grad():
                loss = closure()
            self._notice_changes()
            self._pull()
            return loss

        return self._inner.step(evaluate)

    @torch.no_grad()
    def set_z(self, z: Tensor) -> None:
        """Put z, and with it theta, somewhere else in the subspace."""
        check_z(z, self.P)
        self._check_places()
        self.z.copy_(z)
        self._lay()
        self._write()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the weights that it has are all that it moves."""
        if self.param_groups:
            raise ValueError(
                "a SubspaceOptimizer trains z alone; train further parameters with an optimiser of their own"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser of z, z itself, and marks of P, theta0 and theta; the caller keeps the network.

        It looks like the state of an optimiser of the weights, the first of which holds all that belongs to z: that is
        what ``torch.distributed.checkpoint`` keeps.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._hand_over()
        if [p.device for p in self._weights] == [device for _, device in self._places]:  # not moved away to be saved
            self._notice_changes()
        marks = {"P": probe(self.P), "theta0": fingerprint(self.theta0), "theta": fingerprint(self._expected())}
        self._inner.state = defaultdict(dict, {p: state for p, state in self.state.items() if p is self.z})
        inner, own = self._inner.state_dict(), {"z": self.z.detach(), "subspace": marks}
        places = range(len(self._weights))
        of_weights: dict[int, Any] = {place: {} for place in places} | {0: inner["state"].get(0, {}) | own}
        groups = [group | {"params": list(places)} for group in inner["param_groups"]]
        state = inner | {"state": of_weights, "param_groups": groups} | own
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, before or after the network's own: its weights then are theta0 + P z.

        Raises
        ------
        ValueError
            If the state is none of a ``SubspaceOptimizer``, or belongs to another P, d or theta0.
        """
        state = dict(checks.mapping("state_dict", state_dict))
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state = before(self, state) or state
        state = _gathered(state)
        z, marks = state.pop("z"), dict(checks.mapping("state_dict['subspace']", state.pop("subspace")))
        if missing := {"P", "theta0", "theta"} - marks.keys():
            raise ValueError(f"state_dict['subspace'] lacks the mark of {min(missing)}; use the state as it was saved")
        check_z(z, self.P)
        if missing := {name for group in state["param_groups"] for name in self._inner.defaults.keys() - group.keys()}:
            raise ValueError(
                f"the state belongs to another optimiser than {type(self._inner).__name__}: it has no "
                f"{sorted(missing)[0]!r}; make the one that it was saved from"
            )
        if not same_fingerprint(marks["P"], probe(self.P)):
            raise ValueError(
                "the state belongs to another P; draw P with the family, seed and options it was saved with"
            )
        theta0 = self._base(z.to(self.z), marks)
        self._inner.load_state_dict(state)
        self.state = self._inner.state
        self.param_groups[0].update(_numbers(self._inner.param_groups[0]))
        self.theta0 = theta0
        self.set_z(z)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs; it brings its network, as the copy of any optimiser brings its weights."""
        own = {"net": self.net, "P": self.P, "theta0": self.theta0, "z": self.z, "_inner": self._inner}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lay the weights of the copied network into one theta of their own."""
        super().__setstate__(state)
        with torch.no_grad():
            self._attach()
            self._take_in()

    def _base(self, z: Tensor, marks: dict[str, Any]) -> Tensor:
        """theta0 of a loaded z: ours, or the network's weights if they are the saved theta0, or theta without P z."""
        now = flat(self._weights, self.P.dtype)
        own, here = fingerprint(self.theta0), fingerprint(now)
        loaded = same_fingerprint(here, marks["theta"])
        if same_fingerprint(own, marks["theta0"]) and _distance(own, marks["theta0"]) <= _distance(own, marks["theta"]):
            if loaded or not self._changed():
                return self.theta0
        elif loaded and _distance(here, marks["theta"]) <= _distance(here, marks["theta0"]):
            return torch.sub(now, self.P(z))
        elif same_fingerprint(here, marks["theta0"]):
            return now
        raise ValueError(
            "the network's weights are neither the theta0 of this state nor the theta0 + P z that it was saved with; "
            "load the network's state first, or make the network from the seed it was made from"
        )

    def _attach(self) -> None:
        """Lay the weights into one theta, keep their values, and remember how the network looks."""
        self._parameters = dict(self.net.named_parameters())
        self._check_memory()
        self._flags = [p.requires_grad for p in self._parameters.values()]
        self._weights = [p for p in self._parameters.values() if p.requires_grad]
        tables = [vars(m).get(name, {}) for m in self.net.modules() for name in ("_parameters", "_modules")]
        self._tables = [(table, list(table.values())) for table in tables]
        self._types = [p.dtype for p in self._weights]
        self._places = [(p.shape, p.device) for p in self._weights]
        self._theta = flat(self._weights, self.P.dtype)
        self._gradient = torch.empty_like(self._theta)
        pieces = self._theta.split([p.numel() for p in self._weights])
        for p, piece in zip(self._weights, pieces, strict=True):
            p.data = piece.view(p.shape).to(p.dtype)
        self._laid = [p.data for p in self._weights]
        self._rounded = [
            (weight, piece.view_as(weight))
            for weight, piece in zip(self._laid, pieces, strict=True)
            if weight.dtype != piece.dtype
        ]
        memory = [self._theta, *(weight for weight, _ in self._rounded)]
        self._written = [one.view(_BITS[one.itemsize]) for one in memory]
        self._kept: list[Tensor] = []
        self._holders: list[int] = []

    @torch.no_grad()
    def _expected(self) -> Tensor:
        """theta0 + P z, rounded as it is in the weights."""
        theta = torch.empty_like(self.theta0)
        self.P.write(self.theta0, self.z.detach(), theta)
        pieces = zip(theta.split([p.numel() for p in self._weights]), self._types, strict=True)
        return torch.cat([piece.to(dtype).to(theta.dtype) for piece, dtype in pieces])

    def _write(self) -> None:
        """Write theta0 + P z into the weights, and keep on a CPU what was written, to compare.

        A lazy copy costs nothing: before anybody writes to the weights, or gets hold of their memory, PyTorch gives
        them memory of their own. Where somebody beside PyTorch might still hold it (NumPy), the copy is a real one.
        """
        holders = list(map(_holders, self._written))
        self._holders = self._holders or holders
        lazily = LAZILY and ((self._kept and not self._moved()) or holders == self._holders)
        self._kept = []  # so that the weights are written where they are
        self.P.write(self.theta0, self.z.detach(), self._theta)
        for weight, piece in self._rounded:
            weight.copy_(piece)
        self._versions = [p._version for p in self._weights]
        if self._theta.device.type == "cpu":
            self._kept = [one._lazy_clone() if lazily else one.clone() for one in self._written]

    def _pull(self) -> None:
        """Compute z.grad from the gradients of the weights."""
        if all(p.grad is None for p in self._weights):
            raise ValueError(
                "no weight has a gradient, so there is no step to take; call loss.backward() before step()"
            )
        pieces = [(torch.zeros_like(p) if p.grad is None else dense(p.grad)).reshape(-1) for p in self._weights]
        self.z.grad = self.P.pull_pieces(pieces, self._gradient)

    def _move(self) -> Any:
        """A step of the optimiser of z; fused Adam's by the one operation in which it ends, without the way there."""
        inner, state, gradient = self._inner, self.state.get(self.z), self.z.grad
        group, operation = inner.param_groups[0], _FUSED.get(type(inner))
        if not state or operation is None or not group["fused"] or isinstance(group["lr"], Tensor) or gradient is None:
            return inner.step()
        beta1, beta2 = group["betas"]
        numbers = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        largest = [state["max_exp_avg_sq"]] if group["amsgrad"] else []
        moments = [state["exp_avg"]], [state["exp_avg_sq"]], largest, [state["step"].add_(1)]
        operation([self.z], [gradient], *moments, beta1=beta1, beta2=beta2, **numbers)
        return None

    def _hand_over(self) -> None:
        """Give the numbers of our groups to the optimiser of z."""
        numbers = [_numbers(group) for group in self.param_groups]
        held = {id(p) for group in self.param_groups for p in group["params"]}
        if held != set(map(id, self._weights)) or any(other != numbers[0] for other in numbers[1:]):
            raise ValueError(
                "param_groups must hold the weights of the network, all of them, and the same numbers in every group: "
                "one optimiser moves the one z; for weights that differ, make an optimiser and a P for each part"
            )
        self._inner.param_groups[0].update(numbers[0])
        self._inner.state = self.state

    def _notice_changes(self) -> None:
        """Take in, or refuse, what was done to the network since the last step."""
        if any(len(table) != len(seen) or any(map(is_not, table.values(), seen)) for table, seen in self._tables):
            now = dict(self.net.named_parameters())
            for name in [*self._parameters, *now]:
                if now.get(name) is not self._parameters.get(name):
                    raise ValueError(f"{name!r} was replaced, added or removed after {_MADE}; make a new one")
        if [p.requires_grad for p in self._parameters.values()] != self._flags:
            flags = zip(self._parameters.items(), self._flags, strict=True)
            name, p = next(item for item, flag in flags if item[1].requires_grad != flag)
            state = "thawed" if p.requires_grad else "frozen"
            raise ValueError(f"{name!r} was {state} (requires_grad) after {_MADE}; make a new one, for another D")
        if self._changed():
            self._take_in()

    def _changed(self) -> bool:
        """Whether the weights lie elsewhere or are not what was written; on a GPU, whether PyTorch counted a change."""
        elsewhere, moved = not all(map(Tensor.is_set_to, self._weights, self._laid)), self._moved()
        if elsewhere or moved:
            self._check_memory()
        if not self._kept:
            return elsewhere or [p._version for p in self._weights] != self._versions
        return elsewhere or any(not torch.equal(one, kept) for one, kept in moved)

    def _moved(self) -> list[tuple[Tensor, Tensor]]:
        """The memory of the weights, and what was written to it, where these are no longer one."""
        return [
            (one, kept) for one, kept in zip(self._written, self._kept, strict=False) if _address(one) != _address(kept)
        ]

    def _check_memory(self) -> None:
        """Refuse weights that share memory with other processes, or have none."""
        for name, p in self._parameters.items():
            if p.requires_grad and p.device.type == "cpu" and p.is_shared():
                raise ValueError(
                    f"the weight {name!r} lies in memory shared between processes, and would leave it; "
                    "train a copy of the network, or share gradients instead, as DistributedDataParallel does"
                )
            if p.requires_grad and p.untyped_storage().nbytes() < p.nbytes:
                raise ValueError(f"the memory of the weight {name!r} was given away (resize_?); make a new network")

    def _check_places(self) -> None:
        """Refuse weights of another type, shape or device than they had."""
        for p, place, dtype in zip(self._weights, self._places, self._types, strict=True):
            if ((p.shape, p.device), p.dtype) != (place, dtype):
                raise ValueError(
                    f"the weights of the network were moved or replaced after {_MADE}; "
                    "call .to(), .cuda() or .double() on the network first and make the optimiser after it"
                )

    def _lay(self) -> None:
        """Bring weights that lie elsewhere back into the memory that we write to."""
        for p, laid in zip(self._weights, self._laid, strict=True):
            if not p.is_set_to(laid):
                p.data = laid

    @torch.no_grad()
    def _take_in(self) -> None:
        """Move z to where the weights are now; refuse weights that no z can give."""
        self._check_places()
        now, expected, z = flat(self._weights, self.P.dtype), self._expected(), self.z.detach()
        if not torch.allclose(now, expected, rtol=0, atol=0, equal_nan=True):
            if not expected.isfinite().all():  # z is lost, and nothing is gained by starting from there
                expected, z = self.theta0, torch.zeros_like(z)
            change = now - expected
            noise = torch.stack([torch.finfo(p.dtype).eps * p.float().norm() for p in self._weights]).norm()
            dz = _nearest(self.P, change)
            rest = change - self.P(dz)
            if not rest.norm() <= noise + 1e-4 * change.norm():
                far = [
                    float(part.norm().nan_to_num(torch.inf)) for part in rest.split([p.numel() for p in self._weights])
                ]
                name = [name for name, p in self._parameters.items() if p.requires_grad][far.index(max(far))]
                raise ValueError(
                    f"the weights were changed since the last step, {name!r} most, and no z gives what they are now; "
                    "put them back, or make a new SubspaceOptimizer, whose theta0 they become"
                )
            self.z.copy_(z + dz)
        self._lay()
        self._write()


_FUSED = {Adam: getattr(torch, "_fused_adam_", None), AdamW: getattr(torch, "_fused_adamw_", None)}
"""What their fused steps end in; not public, so a test compares it with the whole step."""
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of so many bytes: other than a nan, they are equal to themselves."""
_MADE = "this SubspaceOptimizer was made"
_ADDRESS = getattr(torch._C, "_data_address", None)
_USE_COUNT = getattr(torch._C, "_storage_Use_Count", None)
LAZILY = None not in (_ADDRESS, _USE_COUNT, getattr(Tensor, "_lazy_clone", None))
"""Whether this PyTorch has what lazy copies need; without it a copy of the weights is made at every step."""


def _of_z(
    z: nn.Parameter, optimizer_class: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
) -> torch.optim.Optimizer:
    """The optimiser of z, if it is one that can move a vector by dense gradients."""
    options = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    if not {"foreach", "differentiable"} & options.keys():
        options = fused(optimizer_class, [z]) | options
    kind = getattr(optimizer_class, "__name__", type(optimizer_class).__name__)
    try:
        inner = optimizer_of([z], optimizer_class, options)
    except ValueError as error:
        raise ValueError(f"{kind} cannot be the optimiser of z, a vector of {len(z)} numbers: {error}") from error
    if callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None)):
        raise ValueError(
            f"{kind} cannot be the optimiser of z: its train() and eval() move weights between steps, and would move z "
            "without the network; give it the z of a SubspaceModel"
        )
    if isinstance(inner, torch.optim.SparseAdam) or inner.defaults.get("differentiable"):
        why = (
            "its step is differentiable" if inner.defaults.get("differentiable") else "it takes sparse gradients alone"
        )
        raise ValueError(f"{kind} cannot be the optimiser of z: {why}; use torch.optim.Adam, say, as it is")
    return inner


def fused(optimizer_class: Callable[..., torch.optim.Optimizer], parameters: Iterable[Tensor]) -> dict[str, bool]:
    """The keyword that makes an optimiser one operation, where it has one."""
    has_one = optimizer_class in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    return {"fused": True} if has_one and all(p.is_floating_point() for p in parameters) else {}


def optimizer_of(
    parameters: list[Any], optimizer_class: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
) -> torch.optim.Optimizer:
    """``optimizer_class(parameters, **options)``, if that is an optimiser.

    Raises
    ------
    TypeError
        If it is none, or needs something else to be made.
    """
    checks.function("optimizer_class", optimizer_class)
    kind = getattr(optimizer_class, "__name__", type(optimizer_class).__name__)
    try:
        made: object = optimizer_class(parameters, **options)
    except TypeError as error:
        raise TypeError(
            f"{kind} cannot be made of parameters and {', '.join(options) or 'nothing else'} ({error}); "
            "pass functools.partial with what it needs, or a function that makes it"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer_class must make an optimiser, but {kind} made a {type(made).__name__}")
    return made


def check_z(z: Tensor, P: Projection) -> None:
    """Refuse a z of another shape than P's."""
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a tensor of shape (d = {P.d},), got {type(z).__name__}")
    if z.shape != (P.d,) or z.is_complex():
        raise ValueError(f"z must have shape (d = {P.d},) and real numbers, got {tuple(z.shape)}, {z.dtype}")


def probe(P: Projection) -> list[float]:
    """A fingerprint of P at one z."""
    with torch.no_grad():
        return fingerprint(P(torch.arange(P.d, dtype=P.dtype, device=P.device).cos()))


def _gathered(state: dict[str, Any]) -> dict[str, Any]:
    """A state as that of z alone, what was kept of it with the first of the weights put to the rest."""
    if missing := {"state", "param_groups"} - state.keys():
        raise ValueError(f"not the state of a SubspaceOptimizer: {min(missing)!r} is missing in {[*state]}")
    of_weights = checks.mapping("state_dict['state']", state["state"]).values()
    of_z = next((dict(one) for one in of_weights if isinstance(one, Mapping) and one), {})
    state = {name: of_z.pop(name) for name in ("z", "subspace") if name in of_z} | state
    if missing := {"z", "subspace"} - state.keys():
        raise ValueError(f"not the state of a SubspaceOptimizer: {min(missing)!r} is missing in {[*state]}")
    groups = [{**group, "params": [0]} for group in state["param_groups"][:1]]
    return state | {"state": {0: of_z} if of_z else {}, "param_groups": groups}


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _address(tensor: Tensor) -> int:
    """Where the numbers of ``tensor`` lie, asked without asking to write there."""
    return _ADDRESS(tensor) if LAZILY and _ADDRESS else tensor.data_ptr()


def _holders(tensor: Tensor) -> int:
    """How many tensors, or arrays, use the memory of ``tensor``."""
    return _USE_COUNT(tensor.untyped_storage()._cdata) if LAZILY and _USE_COUNT else 0


def _distance(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def _nearest(P: Projection, v: Tensor) -> Tensor:
    """The z whose P z is nearest to v: least squares by conjugate gradients, one round where P is orthonormal."""
    z, residual = v.new_zeros(P.d), P.adjoint(v)
    direction, size = residual, residual @ residual
    enough = 1e-12 * size
    for _ in range(100):
        if not size > enough:
            break
        image = P.adjoint(P(direction))
        step = size / (direction @ image)
        z, residual = z + step * direction, residual - step * image
        direction, size = residual + (residual @ residual) / size * direction, residual @ residual
    return z
