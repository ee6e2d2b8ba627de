"""Pack the images into two parts of 56 MB for a machine without a network, and unpack them there, bit for bit.

    python tests/travel.py pack data parts        # where mnist.npz and cifar10.npz are
    python tests/travel.py unpack parts data      # there

Colour photographs travel 500 below each other in Pillow's lossless WebP, all else by ``np.savez_compressed``.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def packed(array: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    if array.ndim == 4:
        Image.fromarray(array.reshape(-1, 32, 3)).save(file, "webp", lossless=True, quality=100)
    else:
        np.savez_compressed(file, array)
    return np.frombuffer(file.getvalue(), np.uint8)


def unpacked(piece: np.ndarray) -> np.ndarray:
    file = io.BytesIO(piece.tobytes())
    webp = piece[:4].tobytes() == b"RIFF"
    return np.asarray(Image.open(file)).reshape(-1, 32, 32, 3) if webp else np.load(file)["arr_0"]


what, source, target = sys.argv[1], *map(Path, sys.argv[2:])
if what not in ("pack", "unpack") or (what == "unpack" and not list(source.glob("part*.npz"))):
    sys.exit(f"{what} {source}: the first word is pack or unpack, and unpack needs part1.npz and part2.npz there")
target.mkdir(exist_ok=True)
if what == "pack":
    parts = [{}, {}]
    for name in ("mnist", "cifar10"):
        for key, array in np.load(source / f"{name}.npz").items():
            for first in range(0, len(array), 500):
                part = min(parts, key=lambda part: sum(map(len, part.values())))
                part[f"{name} {key} {first:05}"] = packed(array[first : first + 500])
    for number, part in enumerate(parts, 1):
        np.savez(target / f"part{number}.npz", **part)
else:
    pieces = {place: piece for part in source.glob("part*.npz") for place, piece in np.load(part).items()}
    for name in ("mnist", "cifar10"):
        arrays = {}
        for place in sorted(pieces):
            if place.startswith(name):
                arrays.setdefault(place.split()[1], []).append(unpacked(pieces[place]))
        np.savez(target / f"{name}.npz", **{key: np.concatenate(found) for key, found in arrays.items()})
