"""What networks are trained on, chosen by and tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Data:
    """Images and labels to train on, to choose by, and to test on once.

    Parameters
    ----------
    train, val, test
        Each a pair (images, labels) of tensors, the labels int64; `val` and `test` may be None.
    name
        Short name for records; the library's own end in `-standin` where the images are not real.
    source
        Where the images came from, in words for a caption.
    """

    train: Pair = field(repr=False)
    val: Pair | None = field(repr=False)
    test: Pair | None = field(default=None, repr=False)
    name: str = "custom"
    source: str = ""

    def __post_init__(self) -> None:
        _check_pair("train", self.train)
        for part, pair in (("val", self.val), ("test", self.test)):
            if pair is None:
                continue
            _check_pair(part, pair)
            if pair[0].shape[1:] != self.shape:
                raise ValueError(
                    f"{part} images have shape {tuple(pair[0].shape[1:])}, but train images {tuple(self.shape)}; "
                    "give all parts the same image shape"
                )

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one."""
        return 1 + max(int(pair[1].max()) for pair in (self.train, self.val, self.test) if pair is not None)

    @property
    def shape(self) -> torch.Size:
        """Shape of one image."""
        return self.train[0].shape[1:]

    def to(self, device: str | torch.device) -> Data:
        """Return the same data on another device."""
        return self._map(lambda pair, _: (pair[0].to(device), pair[1].to(device)))

    def limit(self, train: int | None, val: int | None = None, test: int | None = None) -> Data:
        """Return the first images of each part; None, or more than there are, keeps them all."""
        for part, count in (("train", train), ("val", val), ("test", test)):
            if count is not None and count < 1:
                raise ValueError(f"{part}={count} images, allowed 1 or more; pass None to keep them all")
        counts = {"train": train, "val": val, "test": test}
        return self._map(lambda pair, part: (pair[0][: counts[part]], pair[1][: counts[part]]))

    def _map(self, change: Callable[[Pair, str], Pair]) -> Data:
        pairs = {"train": self.train, "val": self.val, "test": self.test}
        changed: dict[str, Any] = {part: pair and change(pair, part) for part, pair in pairs.items()}
        return replace(self, **changed)


def _check_pair(part: str, pair: object) -> None:
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(item, Tensor) for item in pair)):
        raise TypeError(f"{part} is a {type(pair).__name__}; pass a tuple of two tensors, (images, labels)")
    images, labels = pair
    if labels.dtype != torch.int64:
        raise TypeError(f"{part} labels are {labels.dtype}, allowed torch.int64; pass labels.long()")
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels):
        raise ValueError(
            f"{part} images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}, "
            "allowed (N, ...) and (N,); give every image one label"
        )
    if len(labels) == 0:
        raise ValueError(f"{part} holds 0 images, allowed 1 or more; pass None for a part you do not have")
    if int(labels.min()) < 0:
        raise ValueError(f"{part} labels reach down to {int(labels.min())}, allowed 0 or more; number classes from 0")
