"""The weights of anybody's network: counted, checked, copied, and taken out of it and put back."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_leaves

from subspace_lib.projections import Projection


def count_parameters(net: nn.Module) -> int:
    """D: how many numbers of ``net`` are trained.

    Raises
    ------
    ValueError
        If a layer will only know its shape after the first batch.
    TypeError
        If ``net`` is no network.

    Examples
    --------
    >>> count_parameters(nn.Linear(20, 3))
    63
    """
    _refuse_lazy(net)
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def trained(net: nn.Module, P: Projection) -> dict[str, nn.Parameter]:
    """The weights of ``net`` that P moves, by name and checked against P.

    Raises
    ------
    TypeError
        If ``net`` is no network or P no projection.
    ValueError
        If there is no weight to move, their number is not ``P.D``, or one of them cannot be moved by P.
    """
    if not isinstance(net, nn.Module) or not isinstance(P, Projection):
        raise TypeError(f"expected a network and a Projection, got {type(net).__name__} and {type(P).__name__}")
    D, kind = count_parameters(net), type(net).__name__
    weights = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if D == 0:
        raise ValueError(f"{kind} has no trainable parameter; a subspace needs weights to move")
    if D != P.D:
        raise ValueError(f"P has D = {P.D} rows but {kind} has {D} trainable parameters; use D = {D}")
    for name, p in weights.items():
        if p.is_inference():
            raise ValueError(f"the weight {name!r} was made in inference mode; make the network outside of it")
        if not p.is_floating_point():
            raise ValueError(f"the weight {name!r} is {p.dtype}, but P moves real numbers; freeze it")
        if type(p.data) is not Tensor:
            raise ValueError(
                f"the weight {name!r} is a {type(p.data).__name__}, and P moves ordinary tensors; "
                "make P for the network before it is sharded or quantised, or freeze the weight"
            )
        if p.device != P.device or not _holds(P.dtype, p.dtype):
            raise ValueError(
                f"P is {P.dtype} on {P.device} but a weight is {p.dtype} on {p.device} ({name!r}); "
                "bring both to one device with .to(), and P to a type that holds the weight's"
            )
    for name, module in net.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm and module.weight.requires_grad:
            raise ValueError(
                f"{name or kind!r} renormalises its weights whenever they are used (max_norm = {module.max_norm}), "
                "and so leaves theta0 + P z; set max_norm to None or freeze it"
            )
    _refuse_shared_memory(weights)
    return weights


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether every number of the ``other`` type is one of ``dtype``."""
    try:
        return torch.promote_types(dtype, other) == dtype
    except RuntimeError:  # eight bits are promoted to nothing
        return False


def flat(weights: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """All weights in one vector, which shares no memory with them."""
    return torch.cat([p.detach().reshape(-1).to(dtype) for p in weights])


def names_of(net: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter of ``net`` with all its names: tied weights have several."""
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, p in net.named_parameters(remove_duplicate=False):
        names[p].append(name)
    return names


def copied(net: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of ``net`` that holds nothing of it; tensors that its last forward pass left behind lose their graph.

    Raises
    ------
    ValueError
        If the network cannot be copied, or its copy would go on using the original's weights.
    """
    memo = {} if memo is None else memo
    for p in net.parameters():
        if id(p) not in memo:
            memo[id(p)] = _copied_parameter(p)
    modules = set(net.modules())
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or type(net).__name__!r} is TorchScript, which cannot be taken apart; {_INSTEAD}")
        for attribute, value in vars(module).items():
            for part in _parts(value):
                if isinstance(part, Tensor) and not (part.is_leaf and part.layout is torch.strided):
                    memo.setdefault(id(part), part.detach().clone())
                elif inspect.isfunction(part) and any(
                    isinstance(held, nn.Module | nn.Parameter) and (held in modules or isinstance(held, nn.Parameter))
                    for held in inspect.getclosurevars(part).nonlocals.values()
                ):
                    raise ValueError(
                        f"{type(module).__name__}.{attribute} is a function that holds on to the network, so that a "
                        f"copy would use the weights of the original; make it a method, or: {_INSTEAD}"
                    )
    try:
        return copy.deepcopy(net, memo)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(net).__name__} cannot be copied ({error}); {_INSTEAD}") from error


def emptied(net: nn.Module) -> nn.Module:
    """A copy of ``net``, aliases and all, whose parameters have kept everything but their numbers."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        empty = memo[id(p)] = _copied_parameter(p)
        empty.data = empty.data.new_empty(0)
    return copied(net, memo)


def hollow(net: nn.Module, full: nn.Module) -> nn.Module:
    """A copy of ``net`` in which buffers stand for the parameters: those of ``full`` if frozen, else an absence."""
    memo: dict[int, Any] = {}
    values = dict(full.named_parameters())
    for p, names in names_of(net).items():
        memo[id(p)] = Absent(p, names[0]) if p.requires_grad else values[names[0]].detach().clone()
    without = copied(net, memo)
    for module in without.modules():
        vars(module)["requires_grad_"] = _fixed
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # autograd has no views of a vector with a sparse gradient
        for attribute, stand in list(module._parameters.items()):
            if stand is not None:
                del module._parameters[attribute]
                module.register_buffer(attribute, stand, persistent=not isinstance(stand, Absent))
    return without


@contextmanager
def filled(net: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, the buffers of a hollow ``net`` that stand for parameters are parameters, with these values."""
    places = []
    for name in weights:
        parent, _, attribute = name.rpartition(".")
        module = net.get_submodule(parent)
        places.append((module, attribute, module._buffers[attribute]))
    try:  # which an interrupt may end at any point
        try:
            for (module, attribute, _), weight in zip(places, weights.values(), strict=True):
                module._buffers.pop(attribute, None)  # gone where a module goes by two names, and this is the second
                module._parameters[attribute] = weight  # type: ignore[assignment]
            _refresh(module for module, _, _ in places)
            given = [module._parameters[attribute] for module, attribute, _ in places]
            yield
            for (module, attribute, _), held in zip(places, given, strict=True):
                if module._parameters.get(attribute) is not held:
                    raise ValueError(
                        f"the forward pass replaces the weight {attribute!r} of a {type(module).__name__}, "
                        "so that no optimiser would move it; give what it computes another name"
                    )
        finally:
            _put_back(places)
    except KeyboardInterrupt:
        _put_back(places)
        raise


def _put_back(places: Iterable[tuple[nn.Module, str, Tensor | None]]) -> None:
    """Let buffers stand for parameters again."""
    for module, attribute, stand in places:
        module._parameters.pop(attribute, None)
        module._buffers[attribute] = stand
    _refresh(module for module, _, _ in places)


def kept(net: nn.Module) -> dict[str, Tensor]:
    """The buffers of ``net`` that its state has, each once, under the first of its names."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in net.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found.setdefault(id(buffer), (f"{prefix}.{name}" if prefix else name, buffer))
    return dict(found.values())


@torch.no_grad()
def give_buffers(source: nn.Module, target: nn.Module) -> None:
    """Give ``target``, a network of the same layers, the values of the buffers of ``source``."""
    for prefix, module in source.named_modules():
        other = target.get_submodule(prefix)
        for name, value in module._buffers.items():
            if name in other._parameters:
                continue
            here = other._buffers.get(name)
            if value is None or here is None:
                other._buffers[name] = None if value is None else value.clone()
            else:
                put(here, value)


@torch.no_grad()
def put(buffer: Tensor, value: Tensor) -> None:
    """Give ``buffer`` a value, in place if it can hold it."""
    alike = (buffer.shape, buffer.dtype, buffer.device) == (value.shape, value.dtype, value.device)
    if alike and _span(buffer) >= buffer.numel():
        buffer.copy_(value)
    else:
        buffer.data = value.clone()


def dense(tensor: Tensor) -> Tensor:
    """The same numbers, none left out."""
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def reaches(output: Any, parameters: Iterable[Tensor | None]) -> bool:
    """Whether the gradient of an output of any structure would arrive at one of these parameters."""
    wanted = {id(p) for p in parameters if p is not None}
    leaves = [part for leaf in tree_leaves(output) for part in (leaf, *_parts(getattr(leaf, "__dict__", None)))]
    nodes = [t.grad_fn for t in leaves if isinstance(t, Tensor)]
    seen: set[Any] = {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            if id(getattr(node, "variable", None)) in wanted:
                return True
            nodes.extend(following for following, _ in node.next_functions)  # type: ignore[union-attr]
    return False


class Absent(Tensor):
    """Stands where a weight will be: what computes with it has reached the weight in a way that P cannot serve."""

    label: str

    def __new__(cls, like: Tensor, label: str) -> Self:
        """Nothing, of the type and on the device of ``like``."""
        absent = torch.Tensor._make_subclass(cls, torch.empty(0, dtype=like.dtype, device=like.device))
        absent.label = label
        return absent

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Absent({self.label!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let it be moved and looked at, and nothing else."""
        if func.__name__ in _HARMLESS:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
            if not isinstance(result, Tensor):
                return result
            if func.__name__ != "__get__":
                return cls(result, args[0].label)
        absent = next(part for value in (args, kwargs) for part in _parts(value) if isinstance(part, cls))
        raise ValueError(
            f"the weight {absent.label!r} is used in a way that SubspaceModel cannot serve: outside its forward pass "
            f"(checkpointing does it), or from another place than its layer (a list, say); {_INSTEAD}"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return memo.setdefault(id(self), type(self)(self, self.label))  # type: ignore[no-any-return]

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return _absent, (self.label, self.dtype, self.device)


def _absent(label: str, dtype: torch.dtype, device: torch.device) -> Absent:
    return Absent(torch.empty(0, dtype=dtype, device=device), label)


def _fixed(requires_grad: bool = True) -> None:
    raise ValueError(
        "which weights a SubspaceModel trains is fixed when it is made; freeze or thaw layers of the network that is "
        "given to it, or requires_grad_ of the model, whose only parameter is z"
    )


_INSTEAD = "SubspaceOptimizer trains the network itself, without a copy"
_HARMLESS = {"__get__", "__hash__", "to", "cpu", "cuda", "float", "double", "half", "bfloat16", "type", "detach"}
"""What moving a network needs."""
_HARMLESS |= {"is_floating_point", "is_complex", "is_shared", "share_memory_", "element_size", "numel", "dim", "size"}
_HARMLESS |= {
    "data_ptr",
    "stride",
    "storage_offset",
    "untyped_storage",
    "is_conj",
    "is_neg",
    "_is_view",
    "is_inference",
    "clone",
    "copy_",
}
"""What looking at it needs, as torch.compile does."""


def _parts(value: Any, depth: int = 3) -> Iterator[Any]:
    """A value and what lies in it, where it is a list, a tuple, a set or a dictionary."""
    yield value
    if depth and isinstance(value, list | tuple | set | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part, depth - 1)


def _copied_parameter(p: nn.Parameter) -> nn.Parameter:
    """A copy with the attributes that ``copy.deepcopy`` drops."""
    try:
        parameter = copy.deepcopy(p)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a {type(p).__name__} cannot be copied ({error}); {_INSTEAD}") from error
    vars(parameter).update(copy.deepcopy(vars(p)))
    return parameter


def _refresh(modules: Iterable[nn.Module]) -> None:
    """Recurrent layers keep a list of their weights, too."""
    for module in modules:
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _refuse_lazy(net: nn.Module) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"expected a network, got {type(net).__name__}")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(f"{name!r} has no shape yet, its layer is lazy; run one batch through the network first")


def _refuse_shared_memory(weights: Mapping[str, Tensor]) -> None:
    """Weights that are one in memory but not one parameter would be two in theta."""
    extents = []
    for name, p in weights.items():
        if p.data_ptr():
            extents.append((p.data_ptr(), p.data_ptr() + _span(p) * p.element_size(), name))
            if _span(p) < p.numel():
                raise ValueError(f"the numbers of {name!r} share memory with each other (expand?); give it .clone()")
    extents.sort()
    for (_, end, name), (start, _, other) in pairwise(extents):
        if start < end and weights[name].is_contiguous() and weights[other].is_contiguous():
            raise ValueError(f"{name!r} and {other!r} share memory; make them one parameter: a.weight = b.weight")


def _span(tensor: Tensor) -> int:
    """From the first number of ``tensor`` to its last in memory; shorter than their count where they overlap."""
    if tensor.layout is not torch.strided:
        return tensor.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
