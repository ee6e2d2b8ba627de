"""MNIST and CIFAR-10 as tensors, decoded once, from one packed file each."""

import functools
import itertools
import os
import sys
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from subspace_lib.data import Data, Pair
from subspace_lib.files import replaced_atomically
from subspace_lib.tasks import standins
from subspace_lib.tasks.downloads import fetch
from subspace_lib.tasks.profiles import check_device
from subspace_lib.tasks.standins import Arrays

SIDE = 28
CLASSES = 10
KEYS = ("train_images", "train_labels", "test_images", "test_labels")
SPLIT_SEED = 0
LARGEST = 100_000  # rows of an array: more than either data set has
CHUNK = 2000  # images decoded at once


class RealDataMissing(ValueError):
    """The real data set was required, and is neither in the folder nor to be downloaded."""


@dataclass(frozen=True)
class _Known:
    title: str
    shape: tuple[int, ...]
    mean: float
    std: float
    draw: Callable[[], Arrays]


KNOWN = {
    "mnist": _Known("MNIST", (28, 28), 0.1307, 0.3081, standins.draw_mnist),
    "cifar10": _Known("CIFAR-10", (32, 32, 3), 0.5, 0.5, standins.draw_cifar10),
}


def load_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    require_real: bool = False,
) -> Data:
    """Load MNIST or CIFAR-10: from the packed file, else downloaded, else drawn in its stead.

    Parameters
    ----------
    name
        'mnist' or 'cifar10'.
    root
        Folder of the packed file `<name>.npz`; by default $SUBSPACE_DATA, else the `data` folder of the
        checkout or, without a checkout, of the working folder.
    device
        Where the tensors live.
    require_real
        Raise RealDataMissing instead of falling back to the offline stand-in.

    Returns
    -------
    Data
        float32 images (N, channels, 28, 28), normalised; 80 % of the training set in `train` and 20 % in
        `val`, by one fixed permutation. The stand-in's name ends in '-standin'.
    """
    if name not in tuple(KNOWN):
        raise ValueError(f"unknown data set {name!r}, allowed {', '.join(map(repr, KNOWN))}; pass one of these")
    check_device(str(device))
    known = KNOWN[name]
    path = data_folder(root) / f"{name}.npz"
    arrays, reason = _read_or_set_aside(path, known), ""
    if arrays is None:
        arrays, reason = fetch(name)
        if arrays is not None:
            _keep(path, arrays)
    if arrays is not None:
        _note(name)
        return _decode(arrays, known, device, name, f"real {known.title}")
    if require_real:
        raise RealDataMissing(f"real {known.title} is not at {path} ({reason}); {_advice(path)}")
    _announce(known.title, path, reason)
    _note(f"{name}-standin")
    source = f"offline stand-in for {known.title}, drawn by subspace_lib"
    return _decode(known.draw(), known, device, f"{name}-standin", source)


def data_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the packed files: `root`, else $SUBSPACE_DATA, else `data` as in load_dataset.

    Raises
    ------
    ValueError
        If it begins with ~ and there is no such home.
    """
    chosen = root or os.environ.get("SUBSPACE_DATA")
    if chosen:
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError:
            raise ValueError(
                f"{str(chosen)!r} begins with a home folder that there is not; give a path without ~"
            ) from None
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path("data").absolute()


def _decode(arrays: Arrays, known: _Known, device: str | torch.device, name: str, source: str) -> Data:
    count = len(arrays["train_labels"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    first = count * 4 // 5
    rows = {"train": order[:first], "val": order[first:], "test": torch.arange(len(arrays["test_labels"]))}

    def part(of: str, key: str) -> Pair:
        images = _decode_images(arrays[f"{of}_images"], rows[key], known, device)
        return images, torch.from_numpy(arrays[f"{of}_labels"]).long()[rows[key]].to(device)

    return Data(part("train", "train"), part("train", "val"), part("test", "test"), name, source)


def _decode_images(images: standins.Bytes, rows: Tensor, known: _Known, device: str | torch.device) -> Tensor:
    channels = 1 if len(known.shape) == 2 else known.shape[2]
    decoded = torch.empty(len(rows), channels, SIDE, SIDE, device=device)
    for target, chunk in zip(decoded.split(CHUNK), rows.split(CHUNK), strict=True):
        # On the CPU whatever the device, so that every device sees the same numbers.
        pixels = torch.from_numpy(images[chunk.numpy()]).float().div_(255)
        pixels = pixels[:, None] if channels == 1 else pixels.permute(0, 3, 1, 2)
        if pixels.shape[-1] != SIDE:
            # Not rounded back to whole grey levels, as an image library would.
            pixels = interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        target.copy_((pixels - known.mean) / known.std)
    return decoded


def _read_or_set_aside(path: Path, known: _Known) -> Arrays | None:
    if not path.exists():
        return None
    try:
        return _read(path, known)
    except ValueError as error:
        if _is_whole(path):
            raise ValueError(
                f"{path} is whole, but no packed {known.title} file ({error}); it is left as it is. Move it, give "
                f"another folder as root= or SUBSPACE_DATA, or make it a file of the uint8 arrays {', '.join(KEYS)}"
            ) from error
        warnings.warn(f"{path} is not a packed {known.title} file ({error}); {_set_aside(path)}", stacklevel=3)
        return None


def _is_whole(path: Path) -> bool:
    """Whether a file that is not ours is another program's, which may want it back: a folder, whole zip or array."""
    if path.is_dir():
        return True
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                return packed.testzip() is None
        return np.lib.format.open_memmap(path, mode="r").size >= 0
    except (RuntimeError, NotImplementedError):  # a password, or a compression of others
        return True
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error):
        return False


def _read(path: Path, known: _Known) -> Arrays:
    """Read a packed file, or raise a ValueError that says what is wrong with it."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            if missing := [key for key in KEYS if key not in packed.files]:
                raise ValueError(f"it holds {', '.join(packed.files[:9]) or 'nothing'}, and not {', '.join(missing)}")
            if (rows := max(_claimed_rows(packed, key) for key in KEYS)) > LARGEST:
                raise ValueError(f"it claims to have {rows} rows, allowed up to {LARGEST}")
            arrays = {key: packed[key] for key in KEYS}
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a broken zip file shows in a dozen ways
        text = f"{type(error).__name__}: {error}"
        raise ValueError("no npz, or pickled objects, which are never loaded" if "pickle" in text else text) from error
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise ValueError(f"{part} arrays are {images.dtype} and {labels.dtype}, allowed uint8")
        if images.shape[1:] != known.shape or labels.shape != images.shape[:1] or len(labels) < 2:
            allowed = f"(N, {', '.join(map(str, known.shape))})"
            raise ValueError(f"{part} arrays are {images.shape} and {labels.shape}, allowed {allowed} and (N,)")
        if labels.max() >= CLASSES:
            raise ValueError(f"{part} labels reach {labels.max()}, allowed 0 to {CLASSES - 1}")
    return arrays


def _claimed_rows(packed: Any, key: str) -> int:
    """How many rows an array of a packed file has by its header, before any is read."""
    with packed.zip.open(f"{key}.npy") as member:
        np.lib.format.read_magic(member)
        return int(np.lib.format.read_array_header_1_0(member)[0][0])


def _set_aside(path: Path) -> str:
    names = (f"{path.name}.damaged{number}" for number in itertools.chain([""], itertools.count(2)))
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    try:
        path.rename(target)
    except OSError as error:
        return f"it could not be renamed ({error}); fetching the data again"
    return f"renamed to {target.name}; fetching the data again"


def _keep(path: Path, arrays: Arrays) -> None:
    try:
        with replaced_atomically(path) as partial:
            np.savez(partial, allow_pickle=False, **arrays)
    except OSError as error:
        advice = "going on with the data in memory; pass root= a folder that can be written"
        warnings.warn(f"could not write {path} ({error}); {advice}", stacklevel=3)


def _advice(path: Path) -> str:
    return (
        f"connect to the network and start again, or put {path.name} (uint8 arrays {', '.join(KEYS)}) "
        f"into {path.parent}, or set SUBSPACE_DATA to the folder that holds it"
    )


def _note(name: str) -> None:
    """Write down which images were taken, in the file $SUBSPACE_LOADED, for whoever runs this process and asks."""
    if asked := os.environ.get("SUBSPACE_LOADED"):
        with Path(asked).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")


@functools.cache
def _announce(title: str, path: Path, reason: str) -> None:
    lines = [
        f"THIS IS NOT {title}.",
        f"Offline stand-in images, drawn by subspace_lib, take its place: accuracies are not those of {title}.",
        f"Looked for {path}; {reason}.",
        f"For the real images {_advice(path)}.",
    ]
    text = "\n".join(textwrap.fill(line, 100, break_long_words=False, break_on_hyphens=False) for line in lines)
    rule = "!" * 100
    print(f"{rule}\n{text}\n{rule}", file=sys.stderr, flush=True)
