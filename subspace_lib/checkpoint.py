"""A checkpoint: a few tensors and their description in one file, which is whole and of this library, or refused."""

from __future__ import annotations

import errno
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subspace_lib.files import replaced_atomically
from subspace_lib.projections import Projection
from subspace_lib.projections.base import fingerprint

FILE_FORMAT = "subspace_lib 1"


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this model, or of this version of the library."""


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors, their description and a checksum, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    description = json.dumps(about | {"checksum": _checksum(tensors)})
    with replaced_atomically(path) as temporary:
        save_file(tensors, temporary, {"format": FILE_FORMAT, "description": description})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a checkpoint, or a CheckpointError that says what the file is instead."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint file", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); save it again") from None
    if metadata.get("format") != FILE_FORMAT:
        found = metadata.get("format", "no format of this library")
        raise CheckpointError(f"{path} has format {found!r}, this version of subspace_lib reads {FILE_FORMAT!r}")
    try:
        about = json.loads(metadata["description"])
        checksum = about["checksum"]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} has no whole description ({type(error).__name__}: {error})") from None
    if checksum != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its numbers are not those that were saved; use another copy")
    return about, tensors


def probe(P: Projection) -> list[float]:
    """A fingerprint of P at one z."""
    with torch.no_grad():
        return fingerprint(P(torch.arange(P.d, dtype=P.dtype, device=P.device).cos()))


def _checksum(tensors: dict[str, Tensor]) -> int:
    """A number that changes with any bit of the tensors."""
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), checksum)
    return checksum
