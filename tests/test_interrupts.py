"""An interrupt may come at any line: what it leaves behind is whole, can be saved, and goes on."""

import copy
import io
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subspace_lib import (
    LayerwiseProjection,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    make_projection,
)

X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0]


def net_of(first=None):
    torch.manual_seed(0)
    return nn.Sequential(*(first or [nn.Linear(20, 4)]), nn.Tanh(), nn.Linear(4, 3))


def model_of(net=None):
    net = net_of() if net is None else net
    return SubspaceModel(net, make_projection("one_hot", count_parameters(net), 9))


def factored():
    blocks = {"0.*": ("kronecker", (2, 3)), "2.*": ("identity", None)}
    return SubspaceModel(net_of(), LayerwiseProjection.over(net_of(), blocks)).factored()


def interrupted(n, call):
    """Whether the n-th line of the library that ``call`` comes to was interrupted; it ends before that, at last."""
    left = n

    def trace(frame, event, _):
        nonlocal left
        code = frame.f_code
        if "subspace_lib" not in code.co_filename or code.co_name == "__torch_function__":
            return (
                None  # there only a trace can come between a ``with`` and its end, and would end all of these for good
            )
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize(
    "make", [model_of, factored, lambda: model_of(net_of([nn.RNN(20, 4), Last()]))], ids=["model", "factored", "rnn"]
)
def test_a_forward_pass_leaves_the_model_whole(make):
    model, n = make(), 1
    with torch.no_grad():
        model.z.normal_(generator=torch.Generator().manual_seed(0))
        expected = model(X)
        while interrupted(n, lambda: model(X)):
            assert torch.equal(model(X), expected), n
            n += 1
    assert n > 100


def test_a_step_leaves_weights_and_z_that_agree():
    def setting():
        net = net_of()
        optimizer = SubspaceOptimizer(
            net, make_projection("one_hot", count_parameters(net), 9), torch.optim.Adam, lr=0.05
        )
        return net, optimizer

    def pull(net):
        net.zero_grad()
        F.cross_entropy(net(X), Y).backward()

    n, going = 1, True
    while going:
        net, optimizer = setting()
        pull(net)
        optimizer.step()
        pull(net)
        going = interrupted(n, optimizer.step)
        file = io.BytesIO()
        torch.save((net.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        other, resumed = setting()
        for one, state in zip((other, resumed), torch.load(file), strict=True):
            one.load_state_dict(state)
        for one, its in ((net, optimizer), (other, resumed)):
            pull(one)
            its.step()
        assert torch.equal(optimizer.z, resumed.z), n
        n += 1
    assert n > 50


def test_weights_that_were_changed_are_in_the_state_of_the_optimiser():
    torch.manual_seed(0)
    net = net_of()
    optimizer = SubspaceOptimizer(net, make_projection("one_hot", count_parameters(net), 9), torch.optim.Adam, lr=0.05)
    states = []
    for _ in range(3):
        net.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
        states.append(copy.deepcopy(net.state_dict()))
    net.load_state_dict(states[0])  # the best weights, say
    state = copy.deepcopy(optimizer.state_dict())
    other = net_of()
    resumed = SubspaceOptimizer(other, optimizer.P, torch.optim.Adam, lr=0.05)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(state)
    assert torch.allclose(other[0].weight, states[0]["0.weight"], atol=1e-7)
