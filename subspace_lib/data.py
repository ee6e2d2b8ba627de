"""What networks are trained on, chosen by and tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from subspace_lib import checks

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs and targets to train on, to choose by, and to test on once.

    Parameters
    ----------
    train, val, test
        Each a pair (inputs, targets) of tensors of N rows, or batches of such pairs that can be gone through again and
        again: a list of them, or a ``DataLoader``. ``val`` and ``test`` may be None. Targets are whatever the loss
        takes: classes (N,) or tokens (N, T) as int64, numbers of any shape (N, ...) as floats.
    name
        Short name for records; the library's own end in `-standin` where the images are not real.
    source
        Where the inputs came from, in words for a caption.

    Raises
    ------
    TypeError, ValueError
        If a part is neither pair nor batches, can be gone through only once, or holds no row; if the parts of a pair
        differ in length, or integer targets are not int64; if the parts' inputs differ in shape or type.

    Examples
    --------
    >>> x = torch.randn(6, 3)
    >>> Data(train=(x, torch.tensor([0, 1, 2, 0, 1, 2])), val=None).classes
    3
    >>> regression = Data(train=(x, x.sum(1, keepdim=True)), val=None)
    >>> batches = Data(train=[(x[:3], x[:3]), (x[3:], x[3:])], val=(x, x))
    >>> batches.shape
    torch.Size([3])
    """

    train: Any = field(repr=False)
    val: Any = field(repr=False)
    test: Any = field(default=None, repr=False)
    name: str = "custom"
    source: str = ""

    def __post_init__(self) -> None:
        for part, rows in self._parts().items():
            if is_pair(rows):
                _check_pair(part, rows)
                if is_pair(self.train) and rows[0].dtype != self.train[0].dtype:
                    raise TypeError(
                        f"{part} images are {rows[0].dtype}, but train images {self.train[0].dtype}; give all one type"
                    )
                if is_pair(self.train) and rows[0].shape[1:] != self.shape:
                    raise ValueError(
                        f"{part} images have shape {tuple(rows[0].shape[1:])}, but train images {tuple(self.shape)}; "
                        "give all parts the same image shape"
                    )
            else:
                _check_batches(part, rows)

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one.

        Raises
        ------
        TypeError
            If targets are numbers, or come in batches.
        """
        for part, (_, targets) in self.pairs().items():
            if targets.is_floating_point():
                raise TypeError(f"{part} targets are {targets.dtype}, and classes are counted by int64 labels")
        return 1 + max(int(pair[1].max()) for part, pair in self._parts().items() if self._tensors(part))

    @property
    def shape(self) -> torch.Size:
        """Shape of one input."""
        return first_batch(self.train)[0].shape[1:]

    def to(self, device: str | torch.device) -> Data:
        """Return the same data on another device; batches stay where they are, and are moved when they are used."""
        return self._map(lambda pair, _: (pair[0].to(device), pair[1].to(device)) if is_pair(pair) else pair)

    def limit(self, train: int | None, val: int | None = None, test: int | None = None) -> Data:
        """Return the first rows of each part; None, or more than there are, keeps them all."""
        counts = {"train": train, "val": val, "test": test}
        for part, count in counts.items():
            if count is not None and checks.integer(part, count) < 1:
                raise ValueError(f"{part}={count} images, allowed 1 or more; pass None to keep them all")

        def first(pair: Any, part: str) -> Any:
            if counts[part] is None:
                return pair
            images, labels = self._tensors(part)
            return images[: counts[part]], labels[: counts[part]]

        return self._map(first)

    def pairs(self) -> dict[str, Pair]:
        """The parts that are pairs of tensors."""
        return {part: rows for part, rows in self._parts().items() if is_pair(rows)}

    def _parts(self) -> dict[str, Any]:
        """The parts that are there; a train that is None is there, to be refused."""
        return {"train": self.train} | {
            part: rows for part in ("val", "test") if (rows := getattr(self, part)) is not None
        }

    def _tensors(self, part: str) -> Pair:
        pair: Pair = getattr(self, part)
        if not is_pair(pair):
            raise TypeError(f"{part} holds batches, a {type(pair).__name__}; this needs a pair of tensors")
        return pair

    def _map(self, change: Callable[[Any, str], Any]) -> Data:
        return replace(self, **{part: change(rows, part) for part, rows in self._parts().items()})


def is_pair(rows: object) -> bool:
    """Whether a part of the data is a pair of tensors, not batches."""
    return isinstance(rows, tuple) and len(rows) == 2 and all(isinstance(item, Tensor) for item in rows)


def batches_of(
    rows: Any, size: int, device: torch.device | None = None, order: torch.Generator | None = None
) -> Iterator[Pair]:
    """The batches of a part of the data: of a pair of tensors ``size`` rows each, shuffled if there is an ``order``.

    Batches that are given come as they are, on ``device``.
    """
    if is_pair(rows):
        inputs, targets = rows
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
            shapes = f"{tuple(inputs.shape)} and targets {tuple(targets.shape)}"
            raise ValueError(f"inputs have shape {shapes}; give every row of inputs one of targets")
        if order is None:
            yield from zip(inputs.split(size), targets.split(size), strict=True)
        else:
            for batch in torch.randperm(len(targets), generator=order, device="cpu").to(targets.device).split(size):
                yield inputs[batch], targets[batch]
        return
    empty = True
    for batch in rows:
        pair = tuple(batch) if isinstance(batch, list) else batch  # as a DataLoader gives them
        if not is_pair(pair) or pair[1].ndim == 0 or len(pair[0]) != len(pair[1]):
            raise TypeError(
                f"a batch is a {type(batch).__name__}, allowed a pair of tensors (inputs, targets) of equally many "
                "rows; put a Dataset into a DataLoader, and a pair of tensors into a tuple"
            )
        if len(pair[1]):
            empty = False
            yield pair[0].to(device, non_blocking=True), pair[1].to(device, non_blocking=True)
    if empty:
        raise ValueError(f"a {type(rows).__name__} gave no row; batches must be there in every epoch anew")


def first_batch(rows: Any, size: int = 1) -> Pair:
    """The first ``size`` rows of a pair, or the first batch, drawn without a trace in torch's random numbers."""
    if is_pair(rows):
        return rows[0][:size], rows[1][:size]
    own: Any = getattr(rows, "generator", None)
    before = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        with torch.random.fork_rng(devices=[]):
            return next(batches_of(rows, size))
    finally:
        if before is not None:
            own.set_state(before)


def _check_batches(part: str, rows: object) -> None:
    if isinstance(rows, tuple | Tensor) or (not hasattr(rows, "__iter__") and not hasattr(rows, "__getitem__")):
        raise TypeError(
            f"{part} is a {type(rows).__name__}; pass a tuple of two tensors, (inputs, targets), or batches"
        )
    if isinstance(rows, Dataset) and not isinstance(rows, IterableDataset):
        raise TypeError(f"{part} is a {type(rows).__name__}, which gives single rows; put it into a DataLoader")
    if isinstance(rows, Iterator):
        raise TypeError(
            f"{part} is a {type(rows).__name__}, which is empty after one epoch; pass a list of batches or a DataLoader"
        )


def _check_pair(part: str, pair: Pair) -> None:
    inputs, targets = pair
    if inputs.is_meta or targets.is_meta:
        raise ValueError(f"{part} is on the device 'meta', which holds no numbers; use 'cpu' or 'cuda'")
    if not inputs.layout == targets.layout == torch.strided:
        raise TypeError(f"{part} holds sparse tensors, allowed dense ones; pass x.to_dense()")
    if targets.dtype != torch.int64 and not targets.is_floating_point():
        raise TypeError(
            f"{part} labels are {targets.dtype}, allowed torch.int64 or floats; pass labels.long(), or .float()"
        )
    if targets.ndim < 1 or inputs.ndim < 2 or len(inputs) != len(targets):
        raise ValueError(
            f"{part} images have shape {tuple(inputs.shape)} and labels {tuple(targets.shape)}, "
            "allowed (N, ...) and (N,) or (N, ...); give every image one label"
        )
    if targets.numel() == 0:
        raise ValueError(f"{part} holds 0 images, allowed 1 or more; pass None for a part you do not have")
    if targets.dtype == torch.int64 and targets.ndim == 1 and int(targets.min()) < 0:
        raise ValueError(f"{part} labels reach down to {int(targets.min())}, allowed 0 or more; number classes from 0")
