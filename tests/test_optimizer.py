"""SubspaceOptimizer in anybody's loop: an ordinary optimiser of the network's weights."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau, StepLR

from subspace_lib import SubspaceModel, SubspaceOptimizer, count_parameters, make_projection

X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3


def net_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3))


def setting(name="one_hot", optimizer_class=torch.optim.Adam, d=9, net=None, seed=0, **options):
    net = net_of() if net is None else net
    P = make_projection(name, count_parameters(net), d, seed)
    return net, SubspaceOptimizer(net, P, optimizer_class, **({"lr": 0.05} | options))


def step(net, optimizer, backward=lambda loss: loss.backward(), dtype=torch.float32):
    optimizer.zero_grad()
    backward(F.cross_entropy(net(X.to(dtype)).float(), Y))
    optimizer.step()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def theta(optimizer):
    return optimizer.theta0 + optimizer.P.to_dense() @ optimizer.z.detach()


def test_a_grad_scaler_scales_and_skips():
    moved = {}
    for enabled in (False, True):
        net, optimizer = setting(optimizer_class=torch.optim.SGD)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(net(X), Y)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        moved[enabled] = optimizer.z.detach().clone()
    torch.testing.assert_close(moved[True], moved[False])
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(net(X), Y) * math.inf).backward()
    scaler.step(optimizer)
    assert torch.equal(optimizer.z, moved[True])


def test_clipping_over_the_groups_clips():
    net, optimizer = setting(optimizer_class=torch.optim.SGD, lr=1.0)
    F.cross_entropy(net(X), Y).backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1e-4)
    optimizer.step()
    assert 0 < optimizer.z.norm() <= 1.01e-4


@pytest.mark.parametrize(
    ("scheduler", "arguments"),
    [
        (lambda o: OneCycleLR(o, 0.1, total_steps=9), ()),
        (lambda o: ReduceLROnPlateau(o, patience=0), (1.0,)),
        (lambda o: CosineAnnealingWarmRestarts(o, 3), ()),
        (lambda o: StepLR(o, 2, 0.1), ()),
    ],
)
def test_schedulers_move_z_as_they_move_any_parameter(scheduler, arguments):
    net, optimizer = setting()
    model = SubspaceModel(net_of(), optimizer.P)
    plain = torch.optim.Adam([model.z], lr=0.05)
    ours, theirs = scheduler(optimizer), scheduler(plain)
    for _ in range(8):
        step(net, optimizer)
        step(model, plain)
        ours.step(*arguments)
        theirs.step(*arguments)
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    torch.testing.assert_close(optimizer.z.detach(), model.z.detach(), rtol=1e-3, atol=1e-4)


def test_groups_may_be_changed_and_replaced_but_not_made_two():
    net, optimizer = setting(optimizer_class=torch.optim.SGD)
    optimizer.param_groups[0]["lr"] = 0.0
    step(net, optimizer)
    assert torch.equal(optimizer.z, torch.zeros(9))
    optimizer.param_groups = [dict(optimizer.param_groups[0], lr=0.1)]
    step(net, optimizer)
    assert optimizer.z.norm() > 0
    first, *others = net.parameters()
    numbers = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    optimizer.param_groups = [numbers | {"params": [first]}, numbers | {"params": others, "lr": 0.2}]
    with pytest.raises(ValueError, match="the same numbers in every group"):
        step(net, optimizer)
    optimizer.param_groups = [numbers | {"params": [optimizer.z]}]
    with pytest.raises(ValueError, match="must hold the weights of the network"):
        optimizer.step()


def test_lbfgs_reaches_z():
    net, optimizer = setting(optimizer_class=torch.optim.LBFGS, lr=1.0, line_search_fn="strong_wolfe")
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(X), Y)
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(losses) > 2
    assert closure().item() < losses[0] - 0.05
    torch.testing.assert_close(weights(net), theta(optimizer))


class Lookahead(torch.optim.Optimizer):
    """Every second step, halfway back to where it was two steps ago: around an optimiser, or as the optimiser of z."""

    def __init__(self, params, inner=None, lr=0.05):
        self.inner = torch.optim.SGD(params, lr=lr) if inner is None else inner
        super().__init__(self.inner.param_groups[0]["params"], {"lr": lr})
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
        self.steps = 0

    def step(self, closure=None):
        self.inner.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.add_(p.detach() - slow, alpha=0.5)
                p.data.copy_(slow)


@pytest.mark.parametrize("name", ["one_hot", "dense", "sparse"])
def test_lookahead_inside_and_outside_go_the_same_way(name):
    net, inside = setting(name, Lookahead)
    other, base = setting(name, torch.optim.SGD)
    outside = Lookahead([], base)
    for _ in range(5):
        step(net, inside)
        step(other, outside)
    torch.testing.assert_close(base.z, inside.z, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights(other), weights(net), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rebinding", [False, True])
def test_a_perturbation_that_is_taken_back_changes_nothing(rebinding):
    """As sharpness-aware minimisation does it: the gradient of a place nearby."""
    net, optimizer = setting(optimizer_class=torch.optim.SGD)
    model = SubspaceModel(net_of(), optimizer.P)
    for _ in range(3):
        optimizer.zero_grad()
        kept = [p.data.clone() for p in net.parameters()]
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * p.sign())
        F.cross_entropy(net(X), Y).backward()
        start = [p.grad.clone() for p in net.parameters()]
        with torch.no_grad():
            for p, before in zip(net.parameters(), kept, strict=True):
                if rebinding:
                    p.data = before
                else:
                    p.sub_(p - before)
        gradient = torch.cat([g.flatten() for g in start])
        with torch.no_grad():
            model.z.sub_(0.05 * optimizer.P.adjoint(gradient))
        optimizer.step()
        torch.testing.assert_close(weights(net), model.theta().detach(), rtol=1e-5, atol=1e-6)


def in_place(net):
    with torch.no_grad():
        net[2].weight.add_(0.1)


def through_data(net):
    net[2].weight.data[1, 2] = 5.0


def another_tensor(net):
    net[2].weight.data = torch.randn(3, 4)


def another_state(net):
    net.load_state_dict(net_of(7).state_dict())


@pytest.mark.parametrize("change", [in_place, through_data, another_tensor, another_state])
def test_what_leaves_the_subspace_is_refused_by_name(change):
    net, optimizer = setting()
    step(net, optimizer)
    change(net)
    changed = weights(net)
    with pytest.raises(ValueError, match=r"the weights were changed since the last step, '\d\.\w+' most"):
        step(net, optimizer)
    assert torch.equal(weights(net), changed)
    SubspaceOptimizer(net, optimizer.P, torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("name", ["one_hot", "dense", "fastfood"])
def test_what_lies_in_the_subspace_becomes_z(name):
    net, optimizer = setting(name)
    step(net, optimizer)
    best, z = copy.deepcopy(net.state_dict()), optimizer.z.detach().clone()
    for _ in range(3):
        step(net, optimizer)
    net.load_state_dict(best)
    optimizer.param_groups[0]["lr"] = 0.0
    step(net, optimizer)
    torch.testing.assert_close(optimizer.z.detach(), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(net), torch.cat([v.flatten() for v in best.values()]))


def test_averaged_weights_swap_in_and_back():
    net, optimizer = setting()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    expected = optimizer.z.detach().clone()
    for i in range(4):
        step(net, optimizer)
        average.update_parameters(net)
        expected = optimizer.z.detach().clone() if i == 0 else 0.5 * expected + 0.5 * optimizer.z.detach()
    live = copy.deepcopy(net.state_dict())
    net.load_state_dict(average.module.state_dict())
    net.load_state_dict(live)
    step(net, optimizer)
    net.load_state_dict(average.module.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    step(net, optimizer)
    torch.testing.assert_close(optimizer.z.detach(), expected, rtol=1e-4, atol=1e-5)


def freeze(net):
    net[0].requires_grad_(False)


def thaw(net):
    net[2].bias.requires_grad_(True)


def replace_layer(net):
    net[0] = nn.Linear(20, 4)


def parametrise(net):
    parametrizations.orthogonal(net[2])


def add_layer(net):
    net.append(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (freeze, "was frozen"),
        (thaw, "was thawed"),
        (replace_layer, "replaced, added or removed"),
        (parametrise, "replaced, added or removed"),
        (add_layer, "replaced, added or removed"),
    ],
)
def test_another_structure_is_noticed(change, words):
    net = net_of()
    net[2].bias.requires_grad_(False)
    net, optimizer = setting(net=net)
    step(net, optimizer)
    change(net)
    with pytest.raises(ValueError, match=words):
        optimizer.step()


def test_a_step_without_any_gradient_is_an_error():
    _, optimizer = setting()
    with pytest.raises(ValueError, match=r"no weight has a gradient.*loss.backward\(\) before step"):
        optimizer.step()


def trained(**options):
    net, optimizer = setting(**options)
    for _ in range(5):
        step(net, optimizer)
    return net, optimizer, copy.deepcopy({"net": net.state_dict(), "optimizer": optimizer.state_dict()})


@pytest.mark.parametrize(
    "order", ["optimizer", "net optimizer", "optimizer net", "later net optimizer", "later net0 optimizer"]
)
def test_a_run_resumes_in_any_order(order):
    net, optimizer, saved = trained()
    again = net_of(5) if "later" in order else net_of()
    if order == "net optimizer":
        again.load_state_dict(saved["net"])
    _, resumed = setting(net=again)
    for part in order.split():
        if part == "net":
            again.load_state_dict(saved["net"])
        elif part == "net0":
            again.load_state_dict(net_of().state_dict())
        elif part == "optimizer":
            resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        step(net, optimizer)
        step(again, resumed)
    torch.testing.assert_close(weights(again), weights(net), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(resumed.z, optimizer.z, rtol=1e-4, atol=1e-5)


def test_a_state_of_something_else_is_refused():
    _, _, saved = trained()
    for options, words in [
        ({"seed": 1}, "another P"),
        ({"d": 8}, r"z must have shape \(d = 8,\)"),
        ({"net": net_of(3)}, "theta0"),
    ]:
        _, other = setting(**options)
        before = weights(other.net)
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(saved["optimizer"])
        assert torch.equal(weights(other.net), before)
    with pytest.raises(ValueError, match="not the state of a SubspaceOptimizer: 'subspace' is missing"):
        setting()[1].load_state_dict(torch.optim.Adam(net_of().parameters()).state_dict())


def test_state_dict_hooks_are_called():
    _, optimizer = setting()
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before"))
    optimizer.register_state_dict_post_hook(lambda o, state: state | {"note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "note"})
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after"))
    state = optimizer.state_dict()
    assert state["note"] == 1
    optimizer.load_state_dict(state)
    assert calls == ["before", "after"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_network_and_optimizer_belong_together(copied):
    net, optimizer, _ = trained()
    net2, optimizer2 = copied((net, optimizer))
    step(net2, optimizer2)
    assert not torch.equal(weights(net2), weights(net))
    step(net, optimizer)
    assert torch.equal(weights(net2), weights(net))


def test_short_types_keep_z_and_theta0_long():
    """Steps too small for bfloat16 add up in z, and arrive."""
    net, optimizer = setting(optimizer_class=torch.optim.SGD, lr=1e-4, net=net_of().bfloat16())
    exact = net_of().bfloat16().float()
    _, long = setting(optimizer_class=torch.optim.SGD, lr=1e-4, net=exact)
    for _ in range(40):
        step(net, optimizer, dtype=torch.bfloat16)
        step(exact, long)
    assert optimizer.z.dtype == torch.float32
    torch.testing.assert_close(optimizer.z, long.z, rtol=0.05, atol=1e-4)
    torch.testing.assert_close(weights(net), theta(optimizer).bfloat16())


def test_odd_gradients_and_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 4, sparse=True)
            self.none, self.scale = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(2.0))

        def forward(self, words):
            return self.embed(words).sum() * self.scale + self.none.sum()

    torch.manual_seed(0)
    net, optimizer = setting(net=Net(), optimizer_class=torch.optim.SGD, lr=1.0)
    words = torch.tensor([1, 2, 2])
    net(words).backward()
    gradient = torch.cat([(p.grad.to_dense() if p.grad.is_sparse else p.grad).flatten() for p in net.parameters()])
    optimizer.step()
    torch.testing.assert_close(optimizer.z.detach(), -optimizer.P.to_dense().T @ gradient)


def test_what_cannot_be_moved_is_refused():
    tied = net_of()
    tied.append(nn.Linear(3, 3))
    tied[3].bias.data = tied[2].bias.data
    for net, words in [
        (nn.Linear(3, 2, dtype=torch.complex64), "complex64, but P moves real numbers"),
        (nn.Embedding(5, 2, max_norm=1.0), "max_norm"),
        (tied, "share memory"),
    ]:
        with pytest.raises(ValueError, match=words):
            setting(net=net, d=2)
    with pytest.raises(ValueError, match="run one batch through the network first"):
        count_parameters(nn.LazyLinear(3))


def test_looking_at_the_state_of_a_weight_leaves_no_trace():
    net, optimizer = setting()
    step(net, optimizer)
    for p in net.parameters():
        assert optimizer.state[p] == {}
    state = optimizer.state_dict()["state"]
    assert [list(of_weight) for of_weight in state.values()] == [
        ["step", "exp_avg", "exp_avg_sq", "z", "subspace"],
        [],
        [],
        [],
    ]
    copy.deepcopy((net, optimizer))
    step(net, optimizer)


@pytest.mark.parametrize(
    ("saved", "wanted"), [(torch.optim.Adam, torch.optim.SGD), (torch.optim.SGD, torch.optim.RMSprop)]
)
def test_the_state_of_another_kind_of_optimiser_is_refused(saved, wanted):
    _, _, state = trained(optimizer_class=saved)
    with pytest.raises(ValueError, match=f"belongs to another optimiser than {wanted.__name__}: it has no"):
        setting(optimizer_class=wanted)[1].load_state_dict(state["optimizer"])


@pytest.mark.parametrize(
    ("optimizer_class", "options", "words"),
    [
        ("adam", {}, "optimizer_class must be a function or a class, got 'adam'"),
        (torch.optim.SparseAdam, {}, "SparseAdam cannot be the optimiser of z: it takes sparse gradients alone"),
        (torch.optim.Adam, {"differentiable": True}, "its step is differentiable"),
        (torch.optim.Adam, {"betas": (2.0, 0.9)}, "Adam cannot be the optimiser of z, a vector of 9 numbers: Invalid"),
    ],
)
def test_what_cannot_move_z_is_refused(optimizer_class, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        setting(optimizer_class=optimizer_class, **options)


@pytest.mark.parametrize("state", [None, [1], {"z": 1, "subspace": 2, "state": {}, "param_groups": []}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(TypeError, match=r"state_dict.* must be a dictionary"):
        setting()[1].load_state_dict(state)


def test_numbers_of_numpy_are_saved_as_numbers():
    _, optimizer = setting(lr=np.float64(0.1))
    assert type(optimizer.state_dict()["param_groups"][0]["lr"]) is float
    with pytest.raises(TypeError, match="z must be a tensor"):
        optimizer.set_z([0.0] * 9)


@pytest.mark.parametrize("when", ["before", "after"])
def test_memory_that_processes_share_is_not_left_in_silence(when):
    net = net_of()
    if when == "before":
        net.share_memory()
    with pytest.raises(ValueError, match="'0.weight' lies in memory shared between processes"):
        net, optimizer = setting(net=net)
        net.share_memory()
        step(net, optimizer)


def test_no_step_in_inference_mode():
    net, optimizer = setting()
    F.cross_entropy(net(X), Y).backward()
    with torch.inference_mode(), pytest.raises(ValueError, match="in inference mode"):
        optimizer.step()
    optimizer.step()


def test_weights_of_another_kind_of_tensor_are_refused():
    class Sharded(torch.Tensor):
        pass

    net = nn.Linear(20, 3)
    net.weight = nn.Parameter(net.weight.detach().as_subclass(Sharded))
    with pytest.raises(ValueError, match="the weight 'weight' is a Sharded"):
        setting(net=net)
    net = net_of()
    net[0].weight.data = net[0].weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="P is torch.float32 on cpu but a weight is torch.float8_e4m3fn"):
        setting(net=net)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fused": True, "weight_decay": 0.1},
        {"fused": True, "maximize": True},
        {"fused": True, "amsgrad": True, "eps": 1e-3, "betas": (0.5, 0.9)},
        {"foreach": True, "amsgrad": True},
        {"fused": True, "lr": torch.tensor(0.05)},
    ],
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_short_way_of_adam_is_adam(kind, options):
    """It is an operation of PyTorch's own, and not public; if it changes, this fails."""
    assert SubspaceOptimizer._move.__globals__["_FUSED"][kind] is not None

    class Same(kind):
        """The same, by its own step: the short way is that of the class itself."""

    runs = [setting(optimizer_class=one, **options) for one in (kind, Same)]
    for i in range(4):
        for net, optimizer in runs:
            optimizer.param_groups[0]["weight_decay"] = 0.1 * i
            step(net, optimizer)
    (_, short), (_, long) = runs
    assert torch.equal(short.z, long.z)
    assert short.state[short.z].keys() == long.state[long.z].keys()
    for name, value in short.state[short.z].items():
        assert torch.equal(value, long.state[long.z][name]), name
