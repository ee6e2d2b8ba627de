"""What one word on a chapter's first line means in sizes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch

TESTED = ("cpu", "cuda")
"""Kinds of devices that the tests run on."""


@dataclass(frozen=True)
class Profile:
    """The sizes at which a chapter's live cells run.

    Attributes
    ----------
    name : str
        "smoke", "quick" or "full".
    train_images, val_images : int or None
        How many images of each part of the split are used; None is all.
    epochs : int
        The most epochs of one training run.
    patience : int or None
        Epochs without a lower validation loss after which a run stops.
    seeds : int
        Runs of each setting.
    """

    name: str
    train_images: int | None
    val_images: int | None
    epochs: int
    patience: int | None
    seeds: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", train_images=1_280, val_images=500, epochs=1, patience=None, seeds=2),
        Profile("quick", train_images=5_000, val_images=2_000, epochs=6, patience=None, seeds=2),
        Profile("full", train_images=None, val_images=None, epochs=30, patience=5, seeds=3),
    )
}
"""Profiles by name: smoke for tests, quick for a laptop or Colab, full for a GPU."""


def get_profile(name: str) -> Profile:
    """The profile of that name.

    Raises
    ------
    ValueError
        If there is no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]


def default_device() -> str:
    """Where a chapter trains: $SUBSPACE_DEVICE where it is set, else the GPU if there is one, else the CPU."""
    return check_device(os.environ.get("SUBSPACE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_device(device: str) -> str:
    """The device, if one can compute there; of kinds that our tests do not run on, with a warning.

    Raises
    ------
    ValueError
        If there is no such device here, or it does not compute in double precision, in which losses are summed.
    """
    allowed = ", ".join(TESTED)
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"unknown device {device!r}; choose one of: {allowed}") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but PyTorch finds no GPU here; use 'cpu'")
    if where.type == "cuda" and (where.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {device!r} was asked for, but the GPUs here are cuda:0 to cuda:{count - 1}")
    if where.type not in TESTED:
        try:
            torch.ones(2, dtype=torch.float64, device=where).sum().item()
        except Exception as error:  # PyTorch refuses in a dozen ways
            raise ValueError(
                f"device {device!r} cannot compute in double precision here; use one of: {allowed}"
            ) from error
        warnings.warn(f"the tests of this library do not run on {device!r}; going on with it", stacklevel=2)
    return "cpu" if where.type == "cpu" else device
