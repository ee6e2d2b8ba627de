"""Nothing goes wrong in silence: changes of a network and odd inputs that others' code brings are noticed, or right."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from subspace_lib import (
    Data,
    LayerwiseProjection,
    MatrixProjection,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    diagnose,
    evaluate,
    fit,
    fit_many,
    make_projection,
    search_intrinsic_dimension,
)
from subspace_lib.training import accuracy

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


def through_numpy(net):
    net[0].weight.detach().numpy()[1, 2] = 5.0


def through_dlpack(net):
    torch.from_dlpack(net[0].weight.detach())[1, 2] = 5.0


def through_storage(net):
    net[0].weight.untyped_storage().fill_(1)


def by_foreach(net):
    torch._foreach_mul_([p.data for p in net.parameters()], 2.0)


def by_vector(net):
    nn.utils.vector_to_parameters(torch.ones(111), net.parameters())


def transposed(net):
    net[3].weight.data = net[3].weight.data.t()


def by_out(net):
    torch.ones(4, 20, out=net[0].weight.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "change",
    [through_numpy, through_dlpack, through_storage, by_foreach, by_vector, by_out, transposed],
    ids=lambda f: f.__name__,
)
def test_whoever_writes_to_the_weights_is_noticed(change, dtype):
    net, optimizer = setting(net=net_of().append(nn.Linear(3, 3)).to(dtype))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    change(net)
    with pytest.raises(ValueError, match="the weights were changed since the last step|were moved or replaced"):
        optimizer.step()


def is_lazy(net, optimizer):
    return [torch._C._data_address(one) for one in optimizer._kept] == [torch._C._data_address(net[0].weight)]


def test_what_was_written_is_kept_without_a_copy_until_somebody_takes_hold_of_it():
    """Lazy copies are not public; if they change, this fails, or the tests of what is noticed do."""
    net, optimizer = setting()

    def step():
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()

    step()
    assert is_lazy(net, optimizer)
    F.cross_entropy(net(X), Y).backward()
    [p.norm() for p in net.parameters()], net.state_dict(), copy.deepcopy(net)
    assert is_lazy(net, optimizer)
    step()
    array, at = net[0].weight.detach().numpy(), torch._C._data_address(net[0].weight)
    for _ in range(3):
        step()
        assert not is_lazy(net, optimizer) and torch._C._data_address(net[0].weight) == at
        assert torch.equal(torch.from_numpy(array), net[0].weight)
    for _ in range(2):
        before = array[1, 2]
        array[1, 2] = 5.0
        with pytest.raises(ValueError, match="the weights were changed"):
            step()
        array[1, 2] = before
        step()
    del array
    step()
    assert is_lazy(net, optimizer)
    torch.save(net.state_dict(), io.BytesIO())
    assert not is_lazy(net, optimizer)
    step()
    assert is_lazy(net, optimizer) or torch.__version__ < (2, 7), "PyTorch 2.6 goes on with real copies, as it may"


def test_weights_that_are_not_numbers_are_not_taken_for_changed():
    net, optimizer = setting()
    array = net[0].weight.detach().numpy()
    for _ in range(3):
        for p in net.parameters():
            p.grad = torch.full_like(p, torch.nan)
        optimizer.step()
    assert torch.isnan(torch.from_numpy(array)).all() and not is_lazy(net, optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_weights_bring_a_z_back_that_was_lost(dtype):
    net, optimizer = setting(net=net_of().to(dtype))

    def step(gradient, **numbers):
        optimizer.param_groups[0].update(numbers)
        for p in net.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()

    step(1.0)
    best, z = copy.deepcopy(net.state_dict()), optimizer.z.detach().clone()
    step(torch.nan)
    assert optimizer.z.isnan().all()
    other, copied = copy.deepcopy((net, optimizer))
    assert theta_of(other).isnan().all() and copied.z.isnan().all(), "a copy is what it is a copy of"
    net.load_state_dict(best)
    step(1.0, lr=0.0)
    assert torch.allclose(optimizer.z, z, atol=1e-6 if dtype == torch.float32 else 1e-2)
    net.load_state_dict(net_of(7).state_dict())
    with pytest.raises(ValueError, match="no z gives what they are now"):
        step(1.0)


def half_a_move(net, P):
    """Weights that lie in the subspace."""
    vector_to_parameters(theta_of(net) + 0.5 * P(torch.arange(9.0).double()), net.parameters())


def elsewhere(net, P):
    net.load_state_dict(net_of(7).state_dict())


def double(optimizer_class, **options):
    net = net_of().double()
    P = make_projection("one_hot", count_parameters(net), 9, dtype=torch.float64)
    return net, SubspaceOptimizer(net, P, optimizer_class, lr=0.05, **options)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.LBFGS])
def test_weights_that_a_closure_changes_are_taken_in_or_refused(optimizer_class, when):
    """As by an ordinary optimiser of z, to which a model belongs whose z the closure moves."""
    options = {"max_iter": 4} if optimizer_class is torch.optim.LBFGS else {}

    def ended(model, net, optimizer, change):
        calls = []

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            if len(calls) == 1 and when == "before":
                change()
            loss = F.cross_entropy((net if model is None else model)(X.double()), Y)
            loss.backward()
            if len(calls) == 1 and when == "after":
                change()
            return loss

        for _ in range(2):
            optimizer.step(closure)

    net, optimizer = double(optimizer_class, **options)
    model = SubspaceModel(net_of().double(), optimizer.P)
    plain = optimizer_class([model.z], lr=0.05, **options)
    ended(None, net, optimizer, lambda: half_a_move(net, optimizer.P))
    ended(model, None, plain, lambda: model.z.data.add_(0.5 * torch.arange(9.0)))
    assert torch.allclose(optimizer.z, model.z, atol=1e-8) and optimizer.z[8] > 1
    assert torch.equal(theta_of(net), optimizer.theta0 + optimizer.P(optimizer.z.detach()))
    with pytest.raises(ValueError, match="the weights were changed since the last step"):
        ended(None, net, optimizer, lambda: elsewhere(net, optimizer.P))


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_sparse_gradients_train_as_dense_ones(optimizer_class):
    words = torch.arange(64).reshape(64, 1) % 9
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 6, sparse=sparse), nn.Flatten(), nn.Linear(6, 3))
        data = Data(train=(words, words[:, 0] % 3), val=None)
        found.append(fit(net, data, epochs=3, lr=0.1, batch_size=16, optimizer_class=optimizer_class).train_loss)
    assert found[0] == found[1]


@torch.no_grad()
@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(ignore_index=1)], ids=["function", "module"])
def test_rows_whose_class_is_ignored_count_neither_in_loss_nor_in_accuracy(loss):
    net, ignored = net_of(), getattr(loss, "ignore_index", -100)
    labels = Y.where(torch.arange(64) > 20, ignored)  # the first batch of 16 has no other
    kept = labels != ignored
    outputs, classes = net(X[kept]), labels[kept]
    right = float(F.cross_entropy(outputs, classes)), float((outputs.argmax(1) == classes).double().mean())
    for size in (16, 64):
        assert evaluate(net, X, labels, size, loss=loss) == pytest.approx(right, abs=1e-6)


def test_fit_many_counts_no_class_that_is_ignored():
    net, loss = net_of(), nn.CrossEntropyLoss(ignore_index=1)
    model = SubspaceModel(net, make_projection("one_hot", 99, 9))
    (history,) = fit_many([model], Data(train=(X, Y), val=(X, Y)), epochs=1, lr=0.01, batch_size=16, loss=loss)
    right = evaluate(net, X[Y != 1], Y[Y != 1])
    assert (history.val_loss[0], history.val_accuracy[0]) == pytest.approx(right, abs=1e-6)


def test_a_P_of_another_type_and_a_complex_z_are_refused():
    net, optimizer = setting()
    with pytest.raises(ValueError, match="z must have shape .* and real numbers, got .* torch.complex64"):
        optimizer.set_z(torch.ones(9, dtype=torch.complex64))
    optimizer.P.double()
    with pytest.raises(TypeError, match="v is torch.float32 but P is torch.float64"):
        steps(net, optimizer, 1)


def test_weights_whose_memory_was_given_away_are_refused():
    net, optimizer = setting()
    F.cross_entropy(net(X), Y).backward()
    net[0].weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the memory of the weight '0.weight' was given away"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.SGD])
def test_a_distributed_checkpoint_keeps_z(optimizer_class, tmp_path):
    def states(net, optimizer):
        return dict(zip(("net", "optimizer"), get_state_dict(net, optimizer), strict=True))

    def step(net, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()

    first, again = setting(optimizer_class), setting(optimizer_class)
    for _ in range(3):
        step(*first)
    checkpoint.save(states(*first), checkpoint_id=tmp_path)
    found = states(*again)
    checkpoint.load(found, checkpoint_id=tmp_path)
    set_state_dict(*again, model_state_dict=found["net"], optim_state_dict=found["optimizer"])
    assert torch.equal(again[1].z, first[1].z) and again[1].z.norm() > 0
    step(*first)
    step(*again)
    assert torch.equal(again[0][0].weight, first[0][0].weight)


class NeedsMore(torch.optim.SGD):
    def __init__(self, params, base, lr):
        super().__init__(params, lr=lr)


class NeedsAClosure(torch.optim.SGD):
    def step(self, closure=None):
        assert closure is not None, "sharpness-aware minimisation requires a closure"


@pytest.mark.parametrize(
    ("optimizer_class", "words"),
    [
        (Sharpness, "Sharpness evaluates the loss several times a step"),
        (NeedsAClosure, "NeedsAClosure evaluates the loss several times a step"),
        (NeedsMore, r"NeedsMore cannot be made of parameters and lr.*'base'.*functools.partial"),
        (lambda parameters, lr: None, "optimizer_class must make an optimiser, but <lambda> made a NoneType"),
    ],
)
@pytest.mark.parametrize("kind", ["net", "model", "many"])
def test_optimisers_that_fit_cannot_use_are_refused(optimizer_class, words, kind):
    models = [SubspaceModel(net_of(), make_projection("one_hot", 99, 9)) for _ in range(2)]
    options = {"epochs": 1, "lr": 0.1, "batch_size": 16, "optimizer_class": optimizer_class}
    with pytest.raises((TypeError, ValueError), match=words):
        if kind == "many":
            fit_many(models, Data((X, Y), None), **options)
        else:
            fit(net_of() if kind == "net" else models[0], Data((X, Y), None), **options)


class OfSixteen(nn.Linear):
    def forward(self, x):
        return super().forward(x).view(16, 3) + torch.zeros(16, 3)


@pytest.mark.parametrize("loader", [False, True])
def test_a_network_made_for_one_size_of_batch_is_trained(loader):
    batches = list(zip(X.split(16), Y.split(16), strict=True))
    train = batches if loader else (X, Y)
    history = fit(OfSixteen(20, 3), Data(train, batches), epochs=2, lr=0.1, batch_size=16)
    assert history.train_loss[1] < history.train_loss[0]
    with pytest.raises(ValueError, match="a batch of 15 that was tried does not go through"):
        fit(OfSixteen(20, 3), Data((X[:63], Y[:63]), batches), epochs=2, lr=0.1, batch_size=16)


def test_a_buffer_keeps_its_type_in_a_file(tmp_path):
    def make(dtype=torch.float32):
        net = net_of()
        net.register_buffer("scale", torch.tensor(0.1, dtype=dtype))
        net.register_buffer("count", torch.tensor(1, dtype=torch.int32))
        return net

    model = SubspaceModel.from_seed(make, make_projection("one_hot", 99, 9), 0)
    model.net.scale, model.net.count = torch.tensor(0.3, dtype=torch.float64), torch.tensor(2**40)
    model.save(tmp_path / "file")
    again = SubspaceModel.load(tmp_path / "file", make)
    for name in ("scale", "count"):
        assert torch.equal(again.net.get_buffer(name), model.net.get_buffer(name))
        assert again.net.get_buffer(name).dtype == model.net.get_buffer(name).dtype


def test_a_hook_on_a_gradient_needs_the_network_itself():
    net = net_of()
    net[0].weight.register_hook(torch.zeros_like)
    with pytest.raises(ValueError, match="'0.weight' has a hook on its gradient.*SubspaceOptimizer"):
        SubspaceModel(net, make_projection("one_hot", 99, 9))
    net, optimizer = setting(net=net)
    before = net[0].weight.detach().clone()
    F.cross_entropy(net(X), Y).backward()
    assert not net[0].weight.grad.any()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)  # by the rest of the gradient, which z shares


def test_a_factory_that_makes_no_numbers_is_refused():
    with pytest.raises(ValueError, match="'weight' is on the device 'meta', which holds no numbers"):
        SubspaceModel.from_seed(lambda: nn.Linear(20, 3, device="meta"), make_projection("one_hot", 63, 9), 0)


def rebound(net):
    """The same network, whose weights lie in other memory now."""
    vector_to_parameters(parameters_to_vector(net.parameters()).clone(), net.parameters())
    return net.double().float()


def theta_of(net):
    return parameters_to_vector(net.parameters()).detach()


def steps(net, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(net(X).float(), Y).backward()
        optimizer.step()


def test_z_that_is_set_reaches_weights_that_lie_elsewhere():
    net, optimizer = setting()
    theta0 = theta_of(net).clone()
    steps(net, optimizer, 3)
    rebound(net)
    optimizer.set_z(torch.zeros(9))
    assert torch.equal(theta_of(net), theta0)
    steps(net, optimizer, 1)
    assert optimizer.z.norm() > 0 and torch.equal(theta_of(net), theta0 + optimizer.P(optimizer.z.detach()))
    net.double()
    with pytest.raises(ValueError, match="moved or replaced after this SubspaceOptimizer was made"):
        optimizer.set_z(torch.zeros(9))


def test_a_state_reaches_weights_that_lie_elsewhere():
    net, optimizer = setting()
    theta0 = theta_of(net).clone()
    steps(net, optimizer, 3)
    other, resumed = setting(net=net_of(7))
    vector_to_parameters(theta0.clone(), other.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.allclose(theta_of(other), theta_of(net), atol=1e-6)
    steps(net, optimizer, 2)
    steps(other, resumed, 2)
    assert torch.allclose(resumed.z, optimizer.z, atol=1e-5)


def test_a_change_is_judged_by_the_type_of_the_weight_that_changed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.LayerNorm(40).bfloat16(), nn.Linear(40, 3))
    net[1].register_forward_pre_hook(lambda _, x: (x[0].bfloat16(),))
    net[2].register_forward_pre_hook(lambda _, x: (x[0].float(),))
    _, optimizer = setting(net=net)
    steps(net, optimizer, 1)
    with torch.no_grad():
        net[2].bias.add_(0.05)
    with pytest.raises(ValueError, match="the weights were changed since the last step, '2.bias' most"):
        steps(net, optimizer, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_of_some_steps_ago_are_taken_in(dtype):
    net, optimizer = setting(net=net_of().to(dtype), lr=0.1)
    inputs = X.to(dtype)

    def step():
        F.cross_entropy(net(inputs).float(), Y).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(5):
        step()
    best, z = copy.deepcopy(net.state_dict()), optimizer.z.detach().clone()
    for _ in range(3):
        step()
    late = optimizer.z.detach().clone()
    net.load_state_dict(best)
    optimizer.param_groups[0]["lr"] = 0.0
    step()
    assert (optimizer.z - z).norm() < 0.3 * (late - z).norm()


def test_without_lazy_copies_steps_and_changes_are_the_same(monkeypatch):
    lazy_net, lazy = setting()
    steps(lazy_net, lazy, 4)
    monkeypatch.setattr("subspace_lib.optimizer.LAZILY", False)
    net, optimizer = setting()
    steps(net, optimizer, 4)
    assert torch.equal(optimizer.z, lazy.z)
    move = torch.arange(9.0)
    before = net[0].weight.detach().clone()
    net[0].weight.data[1, 2] = 5.0
    with pytest.raises(ValueError, match="no z gives what they are now"):
        steps(net, optimizer, 1)
    net[0].weight.data[:] = before
    vector_to_parameters(theta_of(net) + optimizer.P(move), net.parameters())
    z = optimizer.z.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    steps(net, optimizer, 1)
    assert torch.allclose(optimizer.z, z + move, atol=1e-4)


# ---- losses, metrics and data that mean something else than it seems ----

NUMBERS = (Y > 0).float()[:, None]


@pytest.mark.parametrize("targets", [NUMBERS, X[:, :1], 2 * X[:, :1].abs()])
@pytest.mark.parametrize("rows", [lambda *pair: pair, lambda *pair: [pair]])
def test_numbers_are_no_probabilities_of_classes(targets, rows):
    with pytest.raises(TypeError, match="a probability for each output; numbers take another loss"):
        fit(nn.Linear(20, 1), Data(rows(X, targets), None), epochs=1, lr=0.1, batch_size=16)


def test_one_output_is_no_choice_among_classes():
    with pytest.raises(ValueError, match=r"two at least, got outputs of shape \(64, 1\)"):
        evaluate(nn.Linear(20, 1), X, NUMBERS, loss=F.binary_cross_entropy_with_logits, metric=accuracy)
    with pytest.raises(TypeError, match="classes are counted by int64 labels"):
        Data((X, NUMBERS), None).classes  # noqa: B018


@pytest.mark.parametrize("measures", [{"loss": nn.MSELoss(reduction="sum")}, {"metric": nn.L1Loss(reduction="sum")}])
def test_a_sum_is_no_mean_over_a_batch(measures):
    with pytest.raises(ValueError, match="gives a sum, allowed the mean over a batch"):
        fit(
            nn.Linear(20, 1),
            Data((X, NUMBERS), None),
            epochs=1,
            lr=0.1,
            batch_size=16,
            **{"loss": F.mse_loss} | measures,
        )


def test_a_dataset_of_rows_is_no_batches():
    with pytest.raises(TypeError, match="TensorDataset, which gives single rows; put it into a DataLoader"):
        Data(TensorDataset(X[:, :1], X[:, :1]), None)


def test_the_first_look_at_a_loader_leaves_its_own_random_numbers_alone():
    def loader():
        return DataLoader(TensorDataset(X, Y), 8, shuffle=True, generator=torch.Generator().manual_seed(0))

    seen = []

    def loss(outputs, targets):
        seen.append(targets)
        return F.cross_entropy(outputs, targets)

    fit(net_of(), Data(loader(), None), epochs=1, lr=0.1, loss=loss)
    assert torch.equal(torch.cat(seen[-8:]), torch.cat([y for _, y in loader()]))


@pytest.mark.parametrize("batches", [True, False])
def test_batches_in_which_every_class_is_ignored_have_no_loss(batches):
    targets = torch.stack([Y, Y], 1)[:32]
    targets[:16] = -100
    net = nn.Sequential(nn.Linear(20, 6), nn.Unflatten(1, (3, 2)))
    pairs = [(X[:16], targets[:16]), (X[16:32], targets[16:])]
    rows = pairs if batches else (X[:32], targets)
    expected = evaluate(net, *pairs[1])[0]
    history = fit(net, Data(rows, rows), epochs=1, lr=1e-9, batch_size=1)
    assert history.train_loss == pytest.approx([expected], rel=1e-4)


# ---- what is handed in as something else ----


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: evaluate(lambda x: x, X, Y), TypeError, "model must be a network, got a function"),
        (lambda: evaluate(net_of(), X[:10], Y[:5], 5), ValueError, r"inputs have shape \(10, 20\) and targets \(5,\)"),
        (lambda: evaluate(net_of(), X, Y[:1], loss=lambda o, y: (o - y).mean()), ValueError, "every row of inputs one"),
        (lambda: evaluate(net_of(), Data((X, Y), None)), TypeError, "pass one of its parts"),
        (lambda: diagnose(net_of()), TypeError, "P must be a Projection, got Sequential"),
        (lambda: count_parameters([1]), TypeError, "expected a network, got list"),
        (lambda: LayerwiseProjection.over("net", {}), TypeError, "net must be a network, got str"),
        (lambda: fit_many([], Data((X, Y), None), epochs=1, lr=None), ValueError, "got 0 models"),
        (lambda: fit_many(None, Data((X, Y), None), epochs=1, lr=1), TypeError, "a sequence of SubspaceModels, got"),
        (lambda: search_intrinsic_dimension(3, 1.0, 1, 10), TypeError, "performance must be a function"),
    ],
)
def test_what_is_handed_in_as_something_else_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_rates_that_are_no_numbers_are_named():
    model = SubspaceModel(net_of(), make_projection("one_hot", 99, 9))
    for lr in (None, "0.1"):
        with pytest.raises(TypeError, match="lr must be a number"):
            fit_many([model], Data((X, Y), None), epochs=1, lr=lr, batch_size=16)


# ---- projections ----


@pytest.mark.parametrize("kernels", ["", "0"])
@pytest.mark.parametrize("name", ["one_hot", "hadamard", "kronecker", "sparse", "fastfood", "dense"])
def test_weights_may_be_written_where_theta0_lies(name, kernels, monkeypatch):
    monkeypatch.setenv("SUBSPACE_KERNELS", kernels)
    P, z, theta = make_projection(name, 1000, 30), torch.randn(30), torch.randn(1000)
    expected = theta + P(z)
    P.write(theta, z, theta)
    torch.testing.assert_close(theta, expected)


def test_a_type_that_one_part_refuses_converts_none():
    P = LayerwiseProjection([make_projection("dense", 50, 2), make_projection("hadamard", 60, 2)])
    with pytest.raises(TypeError, match="hadamard products need"):
        P.half()
    assert {buffer.dtype for buffer in P.buffers() if buffer.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ([(0, 5), (1, 6), (2, 1)], ValueError, "the block of a piece must lie between 0 and 1, got 2"),
        ([(0, 8), (0, -3), (1, 6)], ValueError, "the rows of a piece must be at least 1, got -3"),
        ([(0, 5.0), (1, 6)], TypeError, "the rows of a piece must be an integer"),
        ([5, 6], TypeError, "a piece is a pair"),
    ],
)
def test_pieces_that_cannot_be_are_refused(pieces, error, words):
    with pytest.raises(error, match=words):
        LayerwiseProjection([make_projection("dense", 5, 2), make_projection("dense", 6, 2)], pieces)


def test_blocks_come_from_anything_that_gives_them():
    assert LayerwiseProjection(make_projection("dense", 5, 2) for _ in range(2)).D == 10
    with pytest.raises(TypeError, match=r"got one DenseProjection; make it \[P\]"):
        LayerwiseProjection(make_projection("dense", 5, 2))


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_formats_without_products_are_refused():
    with pytest.raises(TypeError, match="COO, CSR or CSC, got torch.sparse_bsr"):
        MatrixProjection(torch.eye(4).to_sparse_bsr((2, 2)))


# ---- files that could not be loaded ----


@pytest.mark.parametrize("change", ["state", "place", "type and place"])
def test_a_theta0_that_is_no_longer_that_of_its_seed_is_in_the_file(change, tmp_path):
    def factory():
        return nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3))

    model, other = (SubspaceModel.from_seed(factory, make_projection("one_hot", 99, 9), seed) for seed in range(2))
    if change == "state":
        model.load_state_dict(other.state_dict())
    else:
        model.theta0[5] += 1e-6 if change == "place" else 1
    if change == "type and place":
        model.double()
    model.save(tmp_path / "model")
    loaded = SubspaceModel.load(tmp_path / "model", factory)
    assert torch.equal(loaded.theta0, model.theta0)


def test_a_theta0_that_load_could_not_compare_is_not_saved(tmp_path):
    net = net_of()
    with torch.no_grad():
        net[2].bias[0] = -torch.inf
    with pytest.raises(ValueError, match=r"infinite or missing in '2\.bias'"):
        SubspaceModel(net, make_projection("one_hot", 99, 9)).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
