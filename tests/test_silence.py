"""Nothing goes wrong in silence: changes of a network and odd inputs that others' code brings are noticed, or right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subspace_lib import (
    Data,
    LayerwiseProjection,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    fit,
    fit_many,
    make_projection,
    search_intrinsic_dimension,
)

X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3


def net_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3))


def setting(oc=torch.optim.SGD, net=None, **o):
    net = net_of() if net is None else net
    P = make_projection("one_hot", count_parameters(net), 9)
    return net, SubspaceOptimizer(net, P, oc, **({"lr": 0.05} | o))


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware minimisation as its authors' readme uses it: a gradient first, then a step with a closure."""

    def __init__(self, params, lr=0.05):
        self.base = torch.optim.SGD(params, lr=lr)
        super().__init__(self.base.param_groups, {})
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure):
        (p,) = self.param_groups[0]["params"]
        before = p.data.clone()
        p.add_(0.5 * p.grad / p.grad.norm())
        self.zero_grad()
        with torch.enable_grad():
            closure()
        p.data = before
        self.base.step()


def test_sharpness_aware_minimisation_of_z():
    net, optimizer = setting(Sharpness)
    model = SubspaceModel(net_of(), optimizer.P)
    plain = Sharpness([model.z])
    for _ in range(3):
        for one, its in ((net, optimizer), (model, plain)):

            def closure(one=one):
                F.cross_entropy(one(X), Y).backward()

            closure()
            its.step(closure)
            its.zero_grad()
    torch.testing.assert_close(optimizer.z, model.z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_change_places_are_noticed(dtype):
    net, optimizer = setting(net=nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype))
    net(X.to(dtype)).float().sum().backward()
    optimizer.step()
    rows = net[0].weight.data
    rows[[0, 1]] = rows[[1, 0]]
    with pytest.raises(ValueError, match="the weights were changed since the last step, '0.weight' most"):
        optimizer.step()


def test_a_state_without_all_its_marks_is_refused():
    _, optimizer = setting(torch.optim.Adam)
    state = optimizer.state_dict()
    del state["subspace"]["theta"]
    with pytest.raises(ValueError, match="lacks the mark of theta"):
        optimizer.load_state_dict(state)


def replace(net):
    net[0] = nn.Linear(20, 4)


def add(net):
    net.append(nn.Linear(3, 3))


def remove(net):
    del net[1]


@pytest.mark.parametrize("change", [replace, add, remove])
def test_layers_that_change_inside_a_model_are_noticed(change, tmp_path):
    model = SubspaceModel.from_seed(net_of, make_projection("one_hot", 99, 9), 0)
    change(model.net)
    calls = [model.merge, lambda: model.save(tmp_path / "file")]
    calls += [lambda: fit(model, Data((X, Y), None), epochs=1, lr=0.1, batch_size=16)]
    for call in calls:
        with pytest.raises(ValueError, match="replaced, added or removed after the model was made"):
            call()


def test_layers_of_a_model_are_frozen_before_it_is_made():
    model = SubspaceModel(net_of(), make_projection("one_hot", 99, 9))
    with pytest.raises(ValueError, match="fixed when it is made"):
        model.net[0].requires_grad_(False)
    assert not model.requires_grad_(False).z.requires_grad
    model.merge()[0].requires_grad_(False)


class Scaled(nn.Linear):
    def __init__(self, scale, act=F.relu):
        super().__init__(20, 3)
        self.scale, self.act = scale, act

    def forward(self, x):
        return self.act(self.scale * super().forward(x))


@pytest.mark.parametrize("other", [Scaled(5.0), Scaled(1.0, torch.tanh)])
def test_layers_that_were_told_something_else_are_refused(other):
    pair = [SubspaceModel(net, make_projection("one_hot", 63, 9)) for net in (Scaled(1.0), other)]
    with pytest.raises(ValueError, match="the models differ in architecture or type"):
        fit_many(pair, Data((X, Y), None), epochs=1, lr=0.1, batch_size=16)


class BranchesLater(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        y = super().forward(x)
        return y if self.calls < 6 or y.sum() > 0 else -y


def test_a_branch_that_comes_later_is_sent_to_fit():
    pair = [SubspaceModel(BranchesLater(20, 3), make_projection("one_hot", 63, 9)) for _ in range(2)]
    with pytest.raises(ValueError, match="use fit for each: vmap"):
        fit_many(pair, Data((X, Y), None), epochs=3, lr=0.1, batch_size=16)


def test_a_baseline_that_is_an_iterator_serves_twice_and_a_performance_is_one_number():
    assert search_intrinsic_dimension(lambda d, s: min(1.0, d / 50), iter([1.0, 1.0]), 5, 100, seeds=2).bracketed
    with pytest.raises(ValueError, match=r"performance\(5, 0\) gives \[0.1, 0.9\], allowed one number"):
        search_intrinsic_dimension(lambda d, s: [0.1, 0.9], [1.0], 5, 100, seeds=1)


def test_over_keeps_z_long_where_weights_are_short_or_mixed():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).bfloat16()
    blocks = {"0.*": ("one_hot", 5), "1.*": ("identity", None)}
    assert LayerwiseProjection.over(net, blocks).dtype == torch.float32
    net[1].double()
    optimizer = SubspaceOptimizer(net, LayerwiseProjection.over(net, blocks), torch.optim.SGD, lr=0.1)
    assert optimizer.z.dtype == torch.float64
    with pytest.raises(TypeError, match="blocks must be a dictionary"):
        LayerwiseProjection.over(net, None)


class ScheduleFree(torch.optim.SGD):
    """As optimisers without a schedule: they keep two sets of weights and change between them."""

    def train(self):
        pass

    def eval(self):
        pass


def test_an_optimiser_that_changes_weights_between_steps_is_refused():
    with pytest.raises(ValueError, match=r"ScheduleFree cannot be the optimiser of z: its train\(\) and eval\(\)"):
        setting(ScheduleFree)
