"""A checkpoint: a few tensors and their description in one file, which is whole and of this library, or refused."""

from __future__ import annotations

import errno
import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subspace_lib.files import replaced_atomically
from subspace_lib.networks import dense, put


def name_of(dtype: torch.dtype) -> str:
    """The name of a type in a description."""
    return str(dtype).removeprefix("torch.")


FILE_FORMAT = "subspace_lib 2"
OLD_FORMAT = "subspace_lib 1"
"""All buffers and frozen weights are in the file, and the checksum covers the tensors alone."""
TYPES = {name_of(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this model, or of this version of the library."""


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors, their description and a checksum, atomically."""
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    description = json.dumps(about | {"checksum": checksum(tensors, about)})
    with replaced_atomically(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": FILE_FORMAT, "description": description})
        except KeyError as error:
            held = {name_of(tensor.dtype): name for name, tensor in tensors.items()}
            raise ValueError(
                f"cannot save numbers of the type {error}, which safetensors files do not hold (one of each type here: "
                f"{held}); convert the buffer, or register it with persistent=False"
            ) from None


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a checkpoint, or a CheckpointError that says what the file is instead."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint file", str(path))
    try:
        with torch.device("cpu"), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); save it again") from None
    if metadata.get("format") not in (FILE_FORMAT, OLD_FORMAT):
        found = metadata.get("format", "no format of this library")
        raise CheckpointError(
            f"{path} has format {found!r}, this version of subspace_lib reads {FILE_FORMAT!r} and {OLD_FORMAT!r}"
        )
    try:
        about = json.loads(metadata["description"])
        saved = about.pop("checksum")
        _check(about)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has no whole description ({type(error).__name__}: {error})") from None
    if saved != checksum(tensors, about if metadata["format"] == FILE_FORMAT else None):
        raise CheckpointError(f"{path} is damaged: its numbers are not those that were saved; use another copy")
    if "z" not in tensors:
        raise CheckpointError(f"{path} has no z; it has {sorted(tensors)}")
    return about, tensors


def check_recipe(recipe: dict[str, Any], D: int, d: int) -> None:
    """Refuse a recipe that asks for more than a P of D rows and d columns, before anything is drawn.

    Raises
    ------
    CheckpointError
        If a size in it, at any depth, is no whole number between 1 and D, it names another D or d, or its blocks have
        more than D rows.
    """
    for label, size in (("D", D), ("d", d)):
        if recipe.get(label, size) != size:
            raise CheckpointError(f"names a P with {label} = {recipe[label]!r}, but what it belongs to has {size}")
    inner: list[Any] = [recipe]
    while inner:
        part = inner.pop()
        pairs: Any = part.items() if isinstance(part, dict) else enumerate(part)
        for label, value in pairs:
            if isinstance(value, dict | list):
                inner.append(value)
            elif label in ("D", "d") and not (type(value) is int and 1 <= value <= D):
                raise CheckpointError(f"names a P with {label} = {value!r}; allowed are whole numbers from 1 to {D}")
    try:
        rows = _rows(recipe)
    except RecursionError:
        raise CheckpointError("names a P of parts that lie too deep in each other") from None
    if rows > D:
        raise CheckpointError(f"names a P whose blocks have {rows} rows, but what it belongs to has {D}")


def _rows(part: Any) -> int:
    """Rows of a recipe's P: those that it names, else of all blocks in a list, or of the largest part."""
    if isinstance(part, list):
        return sum(map(_rows, part))
    if isinstance(part, dict):
        return int(part["D"] if "D" in part else max(map(_rows, part.values()), default=0))
    return 0


def fill(name: str, buffer: Tensor, value: Tensor) -> None:
    """Put a tensor of the file where it belongs, in its own type, or say that it does not fit."""
    if buffer.shape != value.shape or buffer.is_floating_point() != value.is_floating_point():
        found, wanted = (f"{t.dtype} of shape {tuple(t.shape)}" for t in (value, buffer))
        raise CheckpointError(f"was saved from another architecture: {name!r} is {found} where this has {wanted}")
    put(buffer, value.to(buffer.device))


def is_plain(value: object) -> bool:
    """Whether a description can hold ``value`` and give it back."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError, RuntimeError):
        return False


def checksum(tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> int:
    """A number that changes with any bit of the tensors; and with their names and the description, if there is one."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        if about is not None:
            total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(dense(tensor.detach()).cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data, total)
    return total if about is None else zlib.crc32(json.dumps(about, sort_keys=True).encode(), total)


def _check(about: dict[str, Any]) -> None:
    """Refuse a description whose parts are missing or of the wrong type."""
    seed = about["theta0_seed"]
    for label, right in (
        ("P", isinstance(about["P"], dict)),
        ("dtype", about["dtype"] in TYPES),
        ("types", all(name in TYPES for name in about.get("types", []))),
        ("theta0_seed", seed is None or type(seed) is int),
        ("theta0", _is_fingerprint(about["theta0"])),
        ("probe", _is_fingerprint(about["probe"])),
        ("weights", isinstance(about["weights"], list) and all(isinstance(one, str) for one in about["weights"])),
        ("extra", isinstance(about.get("extra", {}), dict)),
    ):
        if not right:
            raise ValueError(f"{label!r} is not what this library writes")


def _is_fingerprint(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(number) in (int, float) and math.isfinite(number) for number in value)
    )
