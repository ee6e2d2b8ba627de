"""D of every network, and what the toy problem is known to do."""

import pytest
import torch

from subspace_lib import MLP, LeNet, SmallLeNet, ToyProblem, count_parameters


@pytest.mark.parametrize(
    ("net", "shape", "D"),
    [
        (MLP(784), (1, 28, 28), 159_010),
        (MLP(2352), (3, 28, 28), 472_610),
        (MLP(784, depth=2), (1, 28, 28), 199_210),  # li2018's network
        (LeNet(1), (1, 28, 28), 61_706),
        (LeNet(3), (3, 28, 28), 62_006),
        (LeNet(1, pooling="average"), (1, 28, 28), 61_706),
    ],
)
def test_D_is_pinned(net, shape, D):
    assert count_parameters(net) == D
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_small_lenets_reach_from_250_to_6000():
    sizes = {
        count_parameters(SmallLeNet(1, channels, kernel, stride, hidden))
        for channels in (1, 2, 3, 4, 6)
        for kernel in (3, 5)
        for stride in (1, 2)
        for hidden in (0, 10, 20, 40)
        if (kernel, stride) != (5, 2)
    }
    assert min(sizes) <= 250
    assert max(sizes) >= 6_000
    for channels in (1, 3):
        net = SmallLeNet(channels, 4, 5, 1, 20)
        assert net(torch.zeros(2, channels, 28, 28)).shape == (2, 10)


def test_small_lenet_refuses_what_leaves_no_pixel():
    with pytest.raises(ValueError, match="kernel_size = 9 with stride = 3 leaves no pixel"):
        SmallLeNet(1, kernel_size=9, stride=3)


def test_toy_problem_is_zero_exactly_on_its_flat():
    toy = ToyProblem()
    assert count_parameters(toy) == 1000
    with torch.no_grad():
        toy.theta.copy_(torch.arange(1.0, 11).repeat_interleave(100) / 100)
        assert toy() < 1e-9
        toy.theta[0] += 1
        torch.testing.assert_close(toy(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: MLP(0), ValueError, "in_features must be at least 1, got 0"),
        (lambda: MLP(depth=-1), ValueError, "depth must be at least 1, got -1"),
        (lambda: MLP(hidden=2.5), TypeError, "hidden must be an integer, got 2.5 of type float"),
        (lambda: LeNet(in_channels="1"), TypeError, "in_channels must be an integer, got '1' of type str"),
        (lambda: LeNet(in_channels=0), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: LeNet(pooling="mean"), ValueError, "pooling must be 'max' or 'average', got 'mean'"),
        (lambda: SmallLeNet(stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: SmallLeNet(hidden=-2), ValueError, "hidden must be at least 1, got -2"),
        (lambda: ToyProblem(10, 0), ValueError, "blocks must be at least 1, got 0"),
    ],
)
def test_bad_sizes_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_toy_problem_refuses_unequal_blocks():
    with pytest.raises(ValueError, match="D = 1001 must be a multiple of blocks = 10"):
        ToyProblem(1001)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_lenet_pools_what_the_relu_lets_through(pooling):
    torch.manual_seed(0)
    x, net = torch.randn(2, 1, 28, 28), LeNet(pooling=pooling)
    pool = {"max": torch.nn.functional.max_pool2d, "average": torch.nn.functional.avg_pool2d}[pooling]
    torch.testing.assert_close(net[:3](x), pool(net[0](x).relu(), 2))
