"""What a factored first layer makes of the data, x Theta0^T and x B, computed once: no step of z changes it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subspace_lib.data import Data
from subspace_lib.factored import FactoredLinear
from subspace_lib.subspace import SubspaceModel


class LinearOnProducts(FactoredLinear):
    """The same linear layer, which is given x Theta0^T and x B side by side in place of x."""

    def forward(self, x: Tensor) -> Tensor:
        """As for x."""
        if self.factors is None:
            raise ValueError("a layer that takes products has no weight to fill in")
        _, bias, A, Z, _, _ = self.factors
        start, seen = x.tensor_split([self.out_features], dim=1)
        if bias is None and self.bias is not None:
            start = start + self.bias
        return start + F.linear(F.linear(seen, Z), A)


class Products:
    """A factored model and data, both on the products of its first layer, where these can be kept.

    That is so for a linear layer that comes first in a ``Sequential``, after ``Flatten`` at most, where its products
    are fewer numbers than the data, and no hook looks at either; and for data that are tensors in all parts. What is
    kept belongs to these data and this model: it is no data of its own, and ``check`` refuses what was changed since.

    Attributes
    ----------
    model : SubspaceModel
        The model given; or one that shares z, theta0, buffers and all other layers with it, and takes products.
    data : Data
        The data given, or the products of each part.
    """

    def __init__(self, model: SubspaceModel, data: Data) -> None:
        self.model, self.data = model, data
        self.seen: list[tuple[Tensor, Tensor]] = []
        first = _first(model, data)
        plan = model.factoring
        if first is None or plan is None:
            return
        inputs = {part: x for part, (x, _) in data.pairs().items()}
        self.seen = [(tensor, _marks(tensor)) for tensor in (model.theta0, *inputs.values())]
        layer = model.net.get_submodule(first)
        with torch.no_grad(), plan.placed(model.net, model.P, model.theta0, model.z):
            made = {part: _products(layer, x.flatten(1)) for part, x in inputs.items()}
        parts: dict[str, Any] = {part: (made[part], targets) for part, (_, targets) in data.pairs().items()}
        self.data = replace(data, **parts)
        self.model, net, layer = copy.copy(model), copy.copy(model.net), copy.copy(layer)
        layer.__class__ = LinearOnProducts
        net._modules = net._modules | {first: layer}
        self.model._modules = model._modules | {"net": net}

    def check(self) -> None:
        """Refuse data, or a theta0, that were changed in place since, by whomever."""
        unchanged = all(torch.allclose(_marks(tensor), marks, equal_nan=True) for tensor, marks in self.seen)
        if self.seen and not (unchanged and self.model.theta0 is self.seen[0][0]):
            raise ValueError(
                "the inputs or theta0 were changed while fit keeps what the first layer makes of them; "
                "give batches, such as a DataLoader, which are taken as they come"
            )


def _marks(x: Tensor) -> Tensor:
    """A number for each row of x, of the kind of its products: what it costs to look is one column more of these."""
    rows = x.reshape(len(x) if x.ndim > 1 else 1, -1)
    return rows @ torch.arange(rows.shape[1], dtype=x.dtype, device=x.device).cos()


def _products(layer: nn.Module, x: Tensor) -> Tensor:
    """x Theta0^T and x B side by side, with what the bias adds."""
    assert isinstance(layer, FactoredLinear) and layer.factors is not None
    weight, bias, _, _, B, B_bias = layer.factors
    return torch.cat([F.linear(x, weight, bias), F.linear(x, B, B_bias)], dim=1)


def _first(model: SubspaceModel, data: Data) -> str | None:
    """The name of the factored linear layer that comes first, if its products with the data can be kept."""
    net, pairs = model.net, data.pairs()
    batches = [part for part in ("train", "val", "test") if part not in pairs and getattr(data, part) is not None]
    if model.factoring is None or type(model) is not SubspaceModel or type(net) is not nn.Sequential or batches:
        return None
    names, layers = [*net._modules], [*net]
    flat = len(layers) > 1 and isinstance(layers[0], nn.Flatten) and (layers[0].start_dim, layers[0].end_dim) == (1, -1)
    name, layer = names[flat], layers[flat]
    if type(layer) is not FactoredLinear or layers.count(layer) > 1:
        return None
    if any(map(_hooked, (model, net, layers[0], layer))):
        return None
    kept = layer.out_features + model.factoring.columns(model.P, name)
    fits = (
        x.dtype == model.theta0.dtype
        and not (x.is_inference() or x.requires_grad)
        and (flat or x.ndim == 2)
        and x[0].numel() == layer.in_features > kept
        for x, _ in pairs.values()
    )
    return name if all(fits) else None


def _hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes into a module, or comes out of it."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, kind) for kind in kinds)
