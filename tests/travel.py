"""Pack the images into two parts of 52 and 57 MB for a machine without a network, and unpack them there, bit for bit.

    python tests/travel.py pack data parts        # where mnist.npz and cifar10.npz are
    python tests/travel.py unpack parts data      # there; of the first part alone, the digits

Colour photographs travel 500 below each other in Pillow's lossless WebP, all else by LZMA.
"""

import io
import lzma
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FIRST = 0.478
"""The share of the first part, beside which the packages travel."""


def packed(array: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    if array.ndim == 4:
        Image.fromarray(array.reshape(-1, 32, 3)).save(file, "webp", lossless=True, quality=100)
        return np.frombuffer(file.getvalue(), np.uint8)
    np.save(file, array)
    return np.frombuffer(lzma.compress(file.getvalue()), np.uint8)


def unpacked(piece: np.ndarray) -> np.ndarray:
    if piece[:4].tobytes() == b"RIFF":
        return np.asarray(Image.open(io.BytesIO(piece.tobytes()))).reshape(-1, 32, 32, 3)
    return np.load(io.BytesIO(lzma.decompress(piece.tobytes())))


what, source, target = sys.argv[1], *map(Path, sys.argv[2:])
if what not in ("pack", "unpack") or (what == "unpack" and not (source / "part1.npz").exists()):
    sys.exit(f"{what} {source}: the first word is pack or unpack, and unpack needs part1.npz, or both parts, there")
target.mkdir(exist_ok=True)
if what == "pack":
    pieces = {}
    for name in ("mnist", "cifar10"):
        for key, array in np.load(source / f"{name}.npz").items():
            size = 500 if array.ndim == 4 else len(array)
            for first in range(0, len(array), size):
                pieces[f"{name} {key} {len(array)} {first:05}"] = packed(array[first : first + size])
    ends = np.cumsum([len(piece) for piece in pieces.values()])
    cut = int(np.searchsorted(ends, FIRST * ends[-1]))
    for number, part in enumerate((list(pieces.items())[:cut], list(pieces.items())[cut:]), 1):
        np.savez(target / f"part{number}.npz", **dict(part))
else:
    pieces = {place: piece for part in source.glob("part?.npz") for place, piece in np.load(part).items()}
    for name in ("mnist", "cifar10"):
        arrays = {}
        for place in sorted(place for place in pieces if place.startswith(name)):
            _, key, total, _ = place.split()
            arrays.setdefault((key, int(total)), []).append(unpacked(pieces[place]))
        whole = {key: np.concatenate(found) for (key, _), found in arrays.items()}
        if len(whole) == 4 and all(len(whole[key]) == total for key, total in arrays):
            np.savez(target / f"{name}.npz", **whole)
            print(target / f"{name}.npz")
