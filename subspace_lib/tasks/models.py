"""The networks of the book. All use PyTorch's default initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subspace_lib.checks import integer


def MLP(in_features: int = 784, hidden: int = 200, depth: int = 1, classes: int = 10) -> nn.Sequential:
    """A multilayer perceptron: ``depth`` hidden layers of ``hidden`` ReLU units each.

    ``MLP(784)`` has D = 159,010 parameters, ``MLP(2352)`` D = 472,610: the networks of Minut (2023).
    Images of any shape are flattened.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1; ``depth`` may be 0.
    """
    _check_sizes(in_features=in_features, hidden=hidden, classes=classes)
    if depth:
        _check_sizes(depth=depth)
    layers: list[nn.Module] = [nn.Flatten()]
    width = in_features
    for _ in range(depth):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, classes))


def LeNet(in_channels: int = 1, classes: int = 10, pooling: str = "max") -> nn.Sequential:
    """LeNet on 28 x 28 images: two convolutions with pooling, then 120, 84 and 10 units.

    D = 61,706 on one channel, 62,006 on three. The study drew max pooling and built average pooling: ``pooling`` is
    "max" or "average". Max pooling stands before the ReLU: the two commute, and the ReLU has a quarter of the work.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, or the pooling is another word.
    """
    _check_sizes(in_channels=in_channels, classes=classes)
    if pooling not in ("max", "average"):
        raise ValueError(f"pooling must be 'max' or 'average', got {pooling!r}")

    def pooled() -> list[nn.Module]:
        return [nn.MaxPool2d(2), nn.ReLU()] if pooling == "max" else [nn.ReLU(), nn.AvgPool2d(2)]

    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        *pooled(),
        nn.Conv2d(6, 16, 5),
        *pooled(),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def SmallLeNet(
    in_channels: int = 1,
    channels: int = 2,
    kernel_size: int = 3,
    stride: int = 2,
    hidden: int = 0,
    classes: int = 10,
) -> nn.Sequential:
    """A LeNet of 250 to 6,000 parameters, on 28 x 28 images.

    Two convolutions, of ``channels`` and ``2 * channels`` maps, the first with ``stride``, each followed by
    max pooling; then a hidden layer, unless ``hidden`` is 0, and the output.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, or kernel and stride leave no pixel; ``hidden`` may be 0.
    """
    _check_sizes(in_channels=in_channels, channels=channels, kernel_size=kernel_size, stride=stride, classes=classes)
    if hidden:
        _check_sizes(hidden=hidden)
    side = (28 - 1) // stride + 1  # after the first convolution, which is padded
    side = (side // 2 - kernel_size + 1) // 2
    if side < 1:
        raise ValueError(
            f"kernel_size = {kernel_size} with stride = {stride} leaves no pixel of a 28 x 28 image; use smaller ones"
        )
    features = 2 * channels * side * side
    head: list[nn.Module] = [nn.Linear(features, classes)]
    if hidden:
        head = [nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, kernel_size),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        *head,
    )


class ToyProblem(nn.Module):
    """D weights of which each of ``blocks`` equal blocks must sum to its number: Li et al. (2018), section 2.

    loss(theta) = sum_i (sum of block i - i)^2. The solutions form a flat of dimension D - blocks, so a random
    flat of dimension d meets it, with probability one, exactly from d = blocks on: the intrinsic dimension
    is ``blocks``. The module is called without input and gives the loss.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, or D is not a multiple of ``blocks``.
    """

    def __init__(self, D: int = 1000, blocks: int = 10) -> None:
        super().__init__()
        _check_sizes(D=D, blocks=blocks)
        if D % blocks:
            raise ValueError(f"D = {D} must be a multiple of blocks = {blocks}")
        self.theta = nn.Parameter(torch.randn(D))
        self.register_buffer("targets", torch.arange(1.0, blocks + 1), persistent=False)

    targets: Tensor

    def forward(self) -> Tensor:
        """The loss, a scalar."""
        return (self.theta.view(len(self.targets), -1).sum(1) - self.targets).square().sum()


def _check_sizes(**sizes: int) -> None:
    for label, size in sizes.items():
        integer(label, size, 1)
