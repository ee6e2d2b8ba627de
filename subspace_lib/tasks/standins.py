"""Pictures drawn by the library, for readers who cannot reach MNIST or CIFAR-10.

The arrays have the shapes and types of the real data sets, so they go through the same code.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Arrays = dict[str, Bytes]

TRAIN_SIZE, TEST_SIZE = 20_000, 4_000
CHUNK = 250  # images drawn at once: small enough to stay in the processor's cache

# One stroke a digit, (x, y) in a box from -1 to 1 with y pointing down.
STROKES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, -1), (-0.45, -0.7), (-0.6, 0), (-0.45, 0.7), (0, 1), (0.45, 0.7), (0.6, 0), (0.45, -0.7), (0, -1)),
    ((-0.35, -0.6), (0.05, -1), (0.05, 1)),
    ((-0.6, -0.5), (-0.3, -0.95), (0.3, -0.95), (0.6, -0.5), (0.4, 0), (-0.6, 1), (0.65, 1)),
    ((-0.6, -0.8), (0, -1), (0.5, -0.7), (0.4, -0.2), (-0.1, 0), (0.5, 0.2), (0.6, 0.7), (0, 1), (-0.6, 0.8)),
    ((0.35, 1), (0.35, -1), (-0.65, 0.35), (0.7, 0.35)),
    ((0.6, -1), (-0.5, -1), (-0.55, -0.1), (0.1, -0.25), (0.6, 0.2), (0.5, 0.8), (0, 1), (-0.6, 0.8)),
    (
        (0.5, -0.9),
        (-0.1, -0.7),
        (-0.5, 0),
        (-0.5, 0.6),
        (0, 1),
        (0.5, 0.7),
        (0.45, 0.2),
        (0, 0),
        (-0.45, 0.3),
    ),
    ((-0.6, -1), (0.6, -1), (-0.1, 1)),
    ((0, 0), (-0.45, -0.45), (0, -1), (0.45, -0.45), (0, 0), (-0.55, 0.5), (0, 1), (0.55, 0.5), (0, 0)),
    (
        (-0.5, 0.9),
        (0.1, 0.7),
        (0.5, 0),
        (0.5, -0.6),
        (0, -1),
        (-0.5, -0.7),
        (-0.45, -0.2),
        (0, 0),
        (0.45, -0.3),
    ),
)


def draw_mnist() -> Arrays:
    """Ten digits as jittered strokes of the pen, grey, 28 x 28."""
    return _draw(_draw_digits, seed=1)


def draw_cifar10() -> Arrays:
    """Five shapes in two textures on busy backgrounds, coloured, 32 x 32."""
    return _draw(_draw_objects, seed=2)


def _draw(draw: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (TRAIN_SIZE + TEST_SIZE,), generator=generator)
    chunks = [draw(chunk, generator).clamp(0, 1) for chunk in labels.split(CHUNK)]
    images = torch.cat([(255 * chunk).round().byte() for chunk in chunks]).numpy()
    names = labels.byte().numpy()
    return {
        "train_images": images[:TRAIN_SIZE],
        "train_labels": names[:TRAIN_SIZE],
        "test_images": images[TRAIN_SIZE:],
        "test_labels": names[TRAIN_SIZE:],
    }


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _draw_digits(labels: Tensor, generator: torch.Generator) -> Tensor:
    count, longest = len(labels), max(map(len, STROKES))
    table = torch.tensor([stroke + stroke[-1:] * (longest - len(stroke)) for stroke in STROKES])
    points = table[labels] + 0.08 * torch.randn((count, longest, 2), generator=generator)

    angle = _uniform((count,), -0.5, 0.5, generator)
    cos, sin, slant = angle.cos(), angle.sin(), _uniform((count,), -0.3, 0.3, generator)
    rotation = torch.stack([cos, slant * cos - sin, sin, slant * sin + cos], dim=1).view(-1, 2, 2)
    size = _uniform((count, 1, 2), 6, 10, generator)
    centre = 13.5 + _uniform((count, 1, 2), -3.5, 3.5, generator)
    points = (points * size) @ rotation.transpose(1, 2) + centre

    distance = _distance_to_stroke(points, side=28)
    width = _uniform((count, 1, 1), 0.6, 1.6, generator)
    ink = (width + 0.5 - distance).clamp(0, 1) * _uniform((count, 1, 1), 0.7, 1, generator)
    return ink + 0.08 * torch.randn(ink.shape, generator=generator)


def _distance_to_stroke(points: Tensor, side: int) -> Tensor:
    """Distance of every pixel to the nearest of the segments between successive points."""
    grid = torch.arange(side, dtype=torch.float32)
    nearest = torch.full((len(points), side, side), torch.inf)
    for start, end in zip(points.unbind(1), points[:, 1:].unbind(1), strict=False):
        x, y = grid - start[:, :1], grid - start[:, 1:]
        along = (end - start)[:, :, None]
        dot = (x * along[:, 0])[:, None, :] + (y * along[:, 1])[:, :, None]
        square = (x * x)[:, None, :] + (y * y)[:, :, None]
        length = (along * along).sum(1, keepdim=True) + 1e-6
        fraction = (dot / length).clamp_(0, 1)
        square += fraction * (fraction * length - 2 * dot)
        nearest = torch.minimum(nearest, square)
    return nearest.clamp_(min=0).sqrt_()


def _draw_objects(labels: Tensor, generator: torch.Generator) -> Tensor:
    count, side = len(labels), 32

    def numbers(low: float, high: float) -> Tensor:
        return _uniform((count, 1, 1), low, high, generator)

    grid = torch.arange(side, dtype=torch.float32)
    x = grid - 15.5 - numbers(-4, 4)
    y = (grid - 15.5)[:, None] - numbers(-4, 4)
    angle, radius = numbers(0, 2 * torch.pi), numbers(9, 13)
    u = (angle.cos() * x + angle.sin() * y) / radius
    v = (angle.cos() * y - angle.sin() * x) / radius

    shape = labels[:, None, None] % 5
    outline = torch.empty(count, side, side)
    for index, edge in enumerate((_disc, _square, _triangle, _ring, _cross)):
        outline = torch.where(shape == index, edge(u, v), outline)
    inside = (0.5 - radius * outline).clamp(0, 1)[..., None]

    wave = radius * numbers(0.9, 1.3)
    across, along = (wave * u + numbers(0, 6)).sin(), (wave * v + numbers(0, 6)).sin()
    texture = torch.where(labels[:, None, None] < 5, across, 1.4 * across * along)[..., None]

    # A class leans towards one hue, weakly: colour helps, as it does in photographs, but does not decide.
    hue = labels / 10 + 0.18 * torch.randn(count, generator=generator)
    phase = 2 * torch.pi * (hue[:, None] + torch.tensor([0, 1 / 3, 2 / 3]))
    colour = (0.5 + 0.35 * phase.cos())[:, None, None, :]
    paint = colour + 0.3 * texture

    tint = _uniform((count, 1, 1, 3), 0.1, 0.9, generator)
    slope = _uniform((count, 2, 1, 1, 3), -0.012, 0.012, generator)
    ground = tint + slope[:, 0] * x[..., None] + slope[:, 1] * y[..., None]
    ground = ground + 0.15 * (numbers(-0.6, 0.6) * x + numbers(-0.6, 0.6) * y).sin()[..., None]

    image = ground + inside * (paint - ground)
    return image + 0.06 * torch.randn(image.shape, generator=generator)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return (u * u + v * v).sqrt() - 0.9


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.8


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(0.87 * u.abs() + 0.5 * v, -v) - 0.55


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return ((u * u + v * v).sqrt() - 0.75).abs() - 0.22


def _cross(u: Tensor, v: Tensor) -> Tensor:
    thin = torch.minimum(u.abs(), v.abs()) - 0.3
    return torch.maximum(thin, torch.maximum(u.abs(), v.abs()) - 1)
