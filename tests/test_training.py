"""The training loop: what it promises about curves, seeds, stopping and bad input."""

import importlib
import inspect
import math
import multiprocessing
import pickle
import pkgutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subspace_lib
from subspace_lib import (
    MLP,
    Data,
    DivergedError,
    History,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    evaluate,
    fit,
    fit_many,
    make_projection,
)


def blobs(n=600, seed=0):
    """Three classes that a linear model nearly separates."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    centres = 2 * torch.randn(3, 8, generator=torch.Generator().manual_seed(42))
    return centres[y] + torch.randn(n, 8, generator=generator), y


@pytest.fixture
def data():
    return Data(train=blobs(), val=blobs(300, 1), test=blobs(300, 2))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def projected(name="dense", d=30):
    P = make_projection(name, count_parameters(network()), d)
    return SubspaceModel(network(), P)


@pytest.mark.parametrize("make", [network, projected])
def test_it_learns(make, data):
    history = fit(make(), data, epochs=8, lr=0.02)
    assert history.best_accuracy > 0.9
    assert history.test_accuracy > 0.9
    assert len(history.train_loss) == 8
    assert len(history.val_loss) == len(history.val_accuracy) == 9
    assert history.steps == 8 * math.ceil(600 / 128)
    assert history.seconds > 0


@pytest.mark.parametrize("make", [network, projected])
def test_same_seed_same_run_and_other_seed_another(make, data):
    first, again, other = (fit(make(), data, epochs=2, lr=0.02, seed=seed) for seed in (5, 5, 6))
    assert first.train_loss == again.train_loss
    assert first.val_loss == again.val_loss
    assert first.train_loss != other.train_loss
    torch.manual_seed(123)
    assert (
        fit(projected(), data, epochs=1, lr=0.02).val_loss[0] == fit(projected(), data, epochs=1, lr=0.02).val_loss[0]
    )


def test_fit_follows_the_loop_that_a_reader_would_write(data):
    model = projected()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(7)
    x, y = data.train
    losses = []
    for _ in range(3):
        model.train()
        total = 0.0
        for batch in torch.randperm(600, generator=generator).split(100):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / 6
        losses.append(total)
    history = fit(projected(), data, epochs=3, lr=0.02, seed=7, batch_size=100)
    assert history.train_loss == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("make", [network, projected])
def test_the_model_ends_with_the_weights_of_the_best_epoch(make, data):
    model = make()
    history = fit(model, data, epochs=12, lr=0.3, seed=1)
    assert history.best_epoch == min(range(13), key=history.val_loss.__getitem__)
    assert history.best_epoch < 12, "the run was to overfit; choose another lr"
    loss, accuracy = evaluate(model, *data.val)
    assert loss == pytest.approx(history.val_loss[history.best_epoch], rel=1e-4)
    assert accuracy == history.best_accuracy
    assert evaluate(model, *data.test)[1] == history.test_accuracy


def test_early_stopping_waits_for_patience(data):
    history = fit(network(), data, epochs=100, lr=0.3, seed=1, patience=3)
    assert len(history.train_loss) == history.best_epoch + 3 < 100


def test_training_goes_on_from_where_the_model_stands(data):
    model = projected()
    first = fit(model, data, epochs=2, lr=0.02)
    second = fit(model, data, epochs=1, lr=0.02)
    assert second.val_loss[0] == pytest.approx(first.val_loss[first.best_epoch], rel=1e-5)


def test_without_validation_and_test(data):
    history = fit(network(), Data(train=data.train, val=None), epochs=2, lr=0.02)
    assert history.val_accuracy == []
    assert history.best_epoch == 2
    assert history.test_accuracy is None
    assert math.isnan(history.best_accuracy)


def test_any_optimizer_is_taken(data):
    history = fit(projected(), data, epochs=2, lr=0.05, optimizer_class=torch.optim.RMSprop)
    assert history.train_loss[1] < history.train_loss[0]


def test_evaluate_against_a_plain_count(data):
    net = network().train()
    loss, accuracy = evaluate(net, *data.val, batch_size=7)
    assert net.training
    logits = net.eval()(data.val[0])
    assert loss == pytest.approx(F.cross_entropy(logits, data.val[1]).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == data.val[1]).float().mean().item())


def test_a_run_that_diverges_says_so(data):
    bad = Data(train=(data.train[0].clone(), data.train[1]), val=data.val)
    bad.train[0][3] = math.nan
    net = MLP(8, 5, classes=3)
    with pytest.raises(
        DivergedError, match="the training loss is nan and the validation loss is nan in epoch 1 at lr"
    ) as caught:
        fit(net, bad, epochs=3, lr=0.02)
    assert all(p.isfinite().all() for p in net.parameters())  # the weights of the best epoch
    assert len(caught.value.history.train_loss) == 1
    with pytest.raises(DivergedError, match="at lr = 1e\\+30"):
        fit(projected(), data, epochs=3, lr=1e30)
    bad = Data(train=data.train, val=(data.val[0] * math.nan, data.val[1]))
    with pytest.raises(DivergedError, match="^the validation loss is nan in epoch 1"):
        fit(projected(), bad, epochs=1, lr=0.02)


def test_labels_without_an_output_are_refused(data):
    with pytest.raises(ValueError, match="labels run from 0 to 2, but the network has 2 outputs, for labels 0 to 1"):
        fit(MLP(8, 5, classes=2), data, epochs=1, lr=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 601}, "batch_size = 601 is larger than the training set of 600; use at most 600"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer, got 1.5 of type float"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"seed": -1}, "seed must lie between 0 and 4294967295, got -1"),
        ({"seed": 2**32}, "seed must lie between 0 and 4294967295, got 4294967296"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
    ],
)
def test_bad_numbers(options, words, data):
    with pytest.raises((TypeError, ValueError), match=words):
        fit(network(), data, **{"epochs": 1, "lr": 0.1} | options)


def test_the_curve_of_recorded_runs_to_the_last_bit(data):
    """The same batches, steps and weights as a loop that knows nothing of the library."""
    (x, y), (xv, yv) = data.train, data.val
    ours, theirs = MLP(8, 5, classes=3), MLP(8, 5, classes=3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.003, fused=True)
    generator = torch.Generator().manual_seed(3)
    train, accuracies, weights = [], [], []
    for _ in range(4):
        total = torch.zeros(())
        for rows in torch.randperm(600, generator=generator).split(128):
            loss = F.cross_entropy(theirs(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        train.append(total.item() / 600)
        accuracies.append((theirs(xv).argmax(1) == yv).sum().item() / 300)
        weights.append([p.detach().clone() for p in theirs.parameters()])
    history = fit(ours, data, epochs=4, lr=0.003, seed=3)
    assert history.train_loss == train
    assert history.val_accuracy[1:] == pytest.approx(accuracies, rel=1e-15)
    for p, best in zip(ours.parameters(), weights[history.best_epoch - 1], strict=True):
        assert torch.equal(p, best)


def test_a_model_without_parameters(data):
    with pytest.raises(ValueError, match="Flatten has no trainable parameter; there is nothing to fit"):
        fit(nn.Flatten(), data, epochs=1, lr=0.1)


def test_the_optimizer_form_is_what_fit_uses(data, monkeypatch):
    steps = []
    original = SubspaceOptimizer.step
    monkeypatch.setattr(SubspaceOptimizer, "step", lambda self, *a: steps.append(1) or original(self, *a))
    assert fit(projected(), data, epochs=1, lr=0.1).steps == len(steps)


# ---- losses, metrics, schedules, batches ----


def line(n=96):
    x = torch.linspace(-1, 1, n)[:, None]
    return x, 3 * x - 1


def in_a_subspace(net, d=None, seed=0):
    D = count_parameters(net)
    return SubspaceModel(net, make_projection("orthogonal", D, d or D, seed))


@pytest.mark.parametrize("make", [lambda: nn.Linear(1, 1), lambda: in_a_subspace(nn.Linear(1, 1))])
def test_regression_against_the_line(make):
    data = Data(train=line(), val=line(30), test=line(20))
    model = make()
    history = fit(model, data, epochs=60, lr=0.1, batch_size=32, loss=F.mse_loss)
    assert model(torch.tensor([[0.5]])).item() == pytest.approx(0.5, abs=1e-2)
    assert history.val_accuracy == [] and math.isnan(history.best_accuracy) and history.test_accuracy is None
    assert history.test_loss == pytest.approx(F.mse_loss(model(data.test[0]), data.test[1]).item(), rel=1e-4)
    history = fit(make(), data, epochs=1, lr=0.1, batch_size=32, loss=F.mse_loss, metric=F.l1_loss)
    assert len(history.val_accuracy) == 2
    assert history.test_accuracy > 0


def test_a_metric_is_weighted_by_the_size_of_its_batch():
    net, (x, y) = nn.Linear(1, 1), line()
    found = evaluate(net, x, y, batch_size=7, loss=F.mse_loss, metric=F.l1_loss)
    assert found == pytest.approx((F.mse_loss(net(x), y).item(), F.l1_loss(net(x), y).item()), rel=1e-5)
    assert found == pytest.approx(
        evaluate(net, [(x[:50], y[:50]), (x[50:], y[50:])], loss=F.mse_loss, metric=lambda o, t: float(F.l1_loss(o, t)))
    )
    assert math.isnan(evaluate(net, x, y, loss=F.mse_loss)[1])


def of_tokens(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def of_next(outputs, targets):
    return (outputs.argmax(-1) == targets).float().mean()


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_tokens(project):
    tokens = torch.arange(60).reshape(6, 10) % 5
    pair = tokens[:, :-1], tokens[:, 1:]
    model = project(nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5)))
    history = fit(model, Data(pair, pair), epochs=30, lr=0.1, batch_size=2, loss=of_tokens, metric=of_next)
    assert history.best_accuracy == 1
    padded = pair[1].clone()
    padded[:, 0] = -100
    fit(model, Data((pair[0], padded), None), epochs=1, lr=0.1, batch_size=2, loss=of_tokens)
    channels = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5), Turned())
    assert fit(channels, Data((pair[0], padded), None), epochs=30, lr=0.1, batch_size=2).train_loss[-1] < 0.1


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def test_class_probabilities_are_cross_entropys_other_targets(data):
    x, y = data.train
    net = network()
    soft = fit(net, Data((x, F.one_hot(y).float()), (x, F.one_hot(y).float())), epochs=3, lr=0.02)
    hard = fit(network(), Data((x, y), (x, y)), epochs=3, lr=0.02)
    assert soft.train_loss == pytest.approx(hard.train_loss, rel=1e-4)
    assert soft.val_accuracy == hard.val_accuracy


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_the_schedule_sets_the_rate_of_every_step(project):
    asked = []

    def halved(done):
        asked.append(done)
        return 0.5**done

    data = Data(train=line(), val=None)
    ours, theirs = (project(nn.Linear(1, 1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fit(ours, data, epochs=3, lr=0.1, batch_size=40, loss=F.mse_loss, schedule=halved, optimizer_class=torch.optim.SGD)
    assert asked == pytest.approx([step / 9 for step in range(9)])
    order = torch.Generator().manual_seed(0)
    step = 0
    for _ in range(3):
        for rows in torch.randperm(96, generator=order).split(40):
            theirs.zero_grad()
            F.mse_loss(theirs(data.train[0][rows]), data.train[1][rows]).backward()
            with torch.no_grad():
                for p in theirs.parameters():
                    p -= 0.1 * 0.5 ** (step / 9) * p.grad
            step += 1
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("share", [-0.1, math.nan, math.inf])
def test_a_schedule_that_leaves_the_positive_numbers(share):
    with pytest.raises(ValueError, match="schedule must give a share of lr, 0 or more, got"):
        fit(
            nn.Linear(1, 1),
            Data(line(), None),
            epochs=1,
            lr=0.1,
            batch_size=9,
            loss=F.mse_loss,
            schedule=lambda _: share,
        )


class Once:
    """Batches from one iterator: nothing in the second epoch."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


@pytest.mark.parametrize("make", [network, projected])
def test_batches_train_as_their_tensors_do(make, data):
    x, y = data.train
    rows = list(torch.randperm(600, generator=torch.Generator().manual_seed(4)).split(100))
    batches = Data(train=[(x[r], y[r]) for r in rows], val=[data.val])
    model = make()
    found = fit(model, batches, epochs=1, lr=0.02)
    assert found.train_loss == fit(make(), data, epochs=1, lr=0.02, seed=4, batch_size=100).train_loss
    assert found.val_accuracy[1] == evaluate(model, [data.val])[1] == evaluate(model, *data.val)[1]


def test_a_dataloader(data):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data.train), batch_size=50, shuffle=True)
    history = fit(network(), Data(loader, loader, loader), epochs=4, lr=0.02, schedule=lambda done: 1 - done)
    assert history.test_accuracy > 0.9
    assert history.steps == 4 * 12


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda x, y: torch.utils.data.TensorDataset(x, y), "TensorDataset, which gives single rows"),
        (lambda x, y: [x, y], "a batch is a Tensor, allowed a pair of tensors"),
        (lambda x, y: [{"x": x, "y": y}], "a batch is a dict, allowed a pair of tensors"),
        (lambda x, y: [(x, y[:5])], "of equally many rows"),
        (lambda x, y: [], "a list gave no row"),
        (lambda x, y: Once([(x, y)] * 2), "a Once gave no row; batches must be there in every epoch anew"),
    ],
)
def test_what_are_no_batches(rows, words, data):
    with pytest.raises((TypeError, ValueError), match=words):
        fit(network(), Data(rows(*data.train), None), epochs=3, lr=0.02)


# ---- what does not fit together is refused before the first epoch ----


class Says(nn.Module):
    """A network that gives its outputs in another form."""

    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(8, 3), form

    def forward(self, x):
        return self.form(self.linear(x))


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
@pytest.mark.parametrize("form", [lambda o: {"logits": o}, lambda o: (None, o)])
def test_outputs_that_are_no_tensor(project, form, data):
    with pytest.raises(TypeError, match=r"gives a (dict|tuple), .* pass loss=, a function of \(outputs, targets\)"):
        fit(project(Says(form)), data, epochs=1, lr=0.02)

    def loss(outputs, targets):
        return F.cross_entropy(outputs["logits"] if isinstance(outputs, dict) else outputs[1], targets)

    assert math.isfinite(fit(project(Says(form)), data, epochs=1, lr=0.02, loss=loss).val_loss[1])
    with pytest.raises(TypeError, match=r"gives a (dict|tuple), and the loss does not take it"):
        fit(project(Says(form)), data, epochs=1, lr=0.02, loss=F.mse_loss)
    with pytest.raises(TypeError, match=r"gives a (dict|tuple), .* pass loss=, a function of \(outputs, targets\)"):
        evaluate(Says(form), *data.train)


@pytest.mark.parametrize("kind", [torch.uint8, torch.half, torch.bool, torch.double])
def test_inputs_of_another_type_are_named_wherever_they_come(kind, data):
    x, y = data.train
    other = x.to(kind)
    words = rf"inputs are {kind}, the weights torch.float32, .* for instance x.float\(\)"
    with pytest.raises(TypeError, match=words):
        evaluate(network(), other, y)
    later = Data([(x, y), (x[:0], y[:0]), (other, y)], None)
    for train in (
        lambda: fit(network(), later, epochs=1, lr=0.02),
        lambda: fit(projected(), later, epochs=1, lr=0.02),
        lambda: fit_many([projected(), projected()], later, epochs=1, lr=0.02),
    ):
        with pytest.raises(TypeError, match=words):
            train()
    with pytest.raises(TypeError, match=rf"val images are {kind}, but train images torch.float32; give all one type"):
        Data((x, y), (other, y))


def test_data_without_numbers_are_refused():
    x, y = torch.randn(4, 2), torch.arange(4)
    with pytest.raises(ValueError, match="train is on the device 'meta', which holds no numbers"):
        Data((x, y), None).to("meta")
    with pytest.raises(TypeError, match=r"train holds sparse tensors, allowed dense ones; pass x.to_dense\(\)"):
        Data((x.to_sparse(), y), None)


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "words"),
    [
        (
            torch.uint8,
            torch.long,
            {},
            r"inputs are torch.uint8, the weights torch.float32, .* for instance x.float\(\)",
        ),
        (torch.half, torch.long, {}, r"inputs are torch.float16, the weights torch.float32"),
        (torch.float, torch.float, {}, r"train labels are torch.float32 of shape \(600,\).*F.mse_loss"),
        (
            torch.float,
            torch.long,
            {"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")},
            r"gives shape \(2,\)",
        ),
        (torch.float, torch.long, {"loss": lambda o, t: 3.0}, "the loss gives float, allowed a tensor of one number"),
    ],
)
def test_what_does_not_fit_together(inputs, targets, options, words, data):
    x, y = data.train
    for make in (network, projected):
        with pytest.raises((TypeError, ValueError), match=words):
            fit(make(), Data((x.to(inputs), y.to(targets)), None), epochs=1, lr=0.02, **options)


def test_shapes_that_broadcast_are_refused():
    x, y = line()
    for loss in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss):
        with pytest.raises(ValueError, match=r"outputs have shape \(2, 1\) and targets \(2,\) .*; give both one shape"):
            fit(nn.Linear(1, 1), Data((x, y[:, 0]), None), epochs=1, lr=0.1, batch_size=32, loss=loss)
    with pytest.raises(ValueError, match=r"for tokens pass loss=lambda outputs, targets"):
        tokens = torch.arange(40).reshape(4, 10) % 5
        net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
        fit(net, Data((tokens, tokens), None), epochs=1, lr=0.1, batch_size=2)

    for rows in ((x, y[:, 0]), [(x, y[:, 0])]):
        with pytest.raises(ValueError, match="give both one shape"):
            fit(nn.Linear(1, 1), Data((x, y), rows), epochs=1, lr=0.1, batch_size=32, loss=F.mse_loss)
    with pytest.raises(ValueError, match="give both one shape"):
        evaluate(nn.Linear(1, 1), x, y[:, 0], loss=F.mse_loss)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y + 3), "Target . is out of bounds"),
        (lambda x, y: (x, y - 3), "Target -. is out of bounds"),
        (lambda x, y: (x[:, :5], y), "shapes cannot be multiplied"),
        (lambda x, y: (x, y.int()), r"expected .* Long|and targets torch.int32 of shape \(7,\)"),
        (lambda x, y: (x.double(), y), "inputs are torch.float64, the weights torch.float32"),
        (lambda x, y: (x, y[:, None]), r"multi-target|targets torch.int64 of shape \(7, 1\)"),
    ],
)
def test_a_later_batch_that_does_not_fit_is_named(part, change, words):
    good = [(x, y) for x, y in zip(*(one.split(7) for one in blobs(21)), strict=True)]
    data = Data(**({"train": good, "val": None} | {part: [*good[:2], change(*good[2])]}))
    where = {"train": "batch 3 of epoch 1", "val": "the validation set", "test": "the test set"}[part]
    for make in (network, projected):
        with pytest.raises((TypeError, ValueError), match=words) as raised:
            fit(make(), data, epochs=2, lr=0.1)
        assert any(place in str(raised.value) for place in (where, "in the first batch", "for instance x.float()"))
    if part == "val":
        with pytest.raises((TypeError, ValueError), match=words):
            evaluate(network(), data.val)


def test_a_later_batch_of_one_row_with_batch_norm_is_named(data):
    x, y = blobs(33)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
    with pytest.raises(ValueError, match=r"batch 3 of epoch 1: Expected more than 1 value .* or drop_last=True"):
        fit(projected(), Data(loader, None), epochs=1, lr=0.1)


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


class Unused(nn.Linear):
    def forward(self, x):
        return x[:, :3].clone().requires_grad_()


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_what_trains_nothing_is_refused(project, data):
    for net in (Detached(8, 3), Unused(8, 3)):
        with pytest.raises(ValueError, match="no weight has a gradient"):
            fit(project(net), data, epochs=1, lr=0.1)
    with torch.no_grad(), pytest.raises(ValueError, match="no weight has a gradient"):
        fit(project(network()), data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="has no trainable parameter"):
        fit(project(network()).requires_grad_(False), data, epochs=1, lr=0.1)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, outputs, targets):
        return self.weight * F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer_class": torch.optim.LBFGS}, "LBFGS evaluates the loss several times a step"),
        ({"optimizer_class": "adam"}, "optimizer_class must be a function or a class, got 'adam'"),
        ({"loss": "mse"}, "loss must be a function or a class, got 'mse'"),
        ({"loss": Weighted()}, "Weighted has weights of its own"),
        ({"metric": lambda o, t: None}, "a loss or metric gives None, allowed one number"),
        ({"metric": lambda o, t: [1, 2]}, r"a loss or metric gives \[1, 2\]"),
        ({"schedule": 0.5}, "schedule must be a function or a class, got 0.5"),
        ({"on_epoch": 3}, "on_epoch must be a function or a class, got 3"),
    ],
)
def test_options_of_another_kind(options, words, data):
    for make in (network, projected):
        with pytest.raises((TypeError, ValueError), match=words):
            fit(make(), data, epochs=1, lr=0.1, **options)


def test_what_is_no_data_no_model_and_no_wait(data):
    for wrong in (data.train, [data.train]):
        with pytest.raises(TypeError, match=r"data must be a Data, got a (tuple|list); pass Data\(train="):
            fit(network(), wrong, epochs=1, lr=0.1)
    with pytest.raises(TypeError, match="model must be a network, got a str"):
        fit("network", data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="patience = 2 waits for a lower validation loss, but data.val is None"):
        fit(network(), Data(data.train, None), epochs=1, lr=0.1, patience=2)
    with pytest.raises(ValueError, match="its layer is lazy"):
        fit(nn.LazyLinear(3), data, epochs=1, lr=0.1)
    with pytest.raises(TypeError, match="train must be an integer, got 2.5"):
        data.limit(2.5)


def test_a_schedule_needs_the_number_of_batches(data):
    class Stream:
        def __iter__(self):
            yield data.train

    assert fit(network(), Data(Stream(), None), epochs=1, lr=0.1).steps == 1
    with pytest.raises(TypeError, match="how many batches an epoch has, and train cannot say"):
        fit(network(), Data(Stream(), None), epochs=1, lr=0.1, schedule=lambda done: 1.0)


def test_cross_entropy_as_a_module_has_an_accuracy(data):
    one, other = (
        fit(network(), data, epochs=1, lr=0.1, loss=loss) for loss in (F.cross_entropy, nn.CrossEntropyLoss())
    )
    assert one.val_accuracy == other.val_accuracy


def test_complex_weights_are_trained(data):
    class Complex(nn.Linear):
        def __init__(self):
            super().__init__(8, 3, dtype=torch.complex64)

        def forward(self, x):
            return super().forward(x.to(torch.complex64)).real

    history = fit(Complex(), data, epochs=2, lr=0.02)
    assert history.val_loss[-1] < history.val_loss[0]


@pytest.mark.parametrize("make", [network, projected])
def test_after_an_epoch_the_model_stands_where_training_stands(make, data):
    model, seen = make(), []
    history = fit(model, data, epochs=3, lr=0.02, on_epoch=lambda _: seen.append(evaluate(model, *data.val)[0]))
    assert seen == pytest.approx(history.val_loss[1:], rel=1e-5)


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_a_last_batch_of_one_with_batch_norm(project):
    x, y = blobs(129)
    model = project(network())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="batch_size = 128 leaves one row for the last batch: .* take another batch_size"
    ):
        fit(model, Data((x, y), None), epochs=1, lr=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    fit(model, Data((x, y), None), epochs=1, lr=0.1, batch_size=127)
    assert fit(MLP(8, 5, classes=3), Data((x, y), None), epochs=1, lr=0.1).steps == 2


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_the_batch_that_is_tried_leaves_no_trace(project, data):
    torch.manual_seed(0)
    model = project(nn.Sequential(*network(), nn.Dropout(0.5)))
    torch.manual_seed(1)
    seen = []
    fit(model, data, epochs=1, lr=0.1, batch_size=600, on_epoch=lambda history: seen.append(torch.rand(1)))
    torch.manual_seed(1)
    torch.empty(600, 3).bernoulli_(0.5)
    assert torch.equal(seen[0], torch.rand(1))


# ---- modes, interruptions, divergence, numbers that are missing ----


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_batch_norm_that_rests_stays_so_and_modes_are_kept(project, data):
    net = network()
    net[1].eval()
    model = project(net)
    norm = (model.net if isinstance(model, SubspaceModel) else model)[1]
    before = norm.running_mean.clone()
    fit(model, data, epochs=2, lr=0.05)
    assert torch.equal(norm.running_mean, before)
    assert model.training and not norm.training
    model.eval()  # the whole network: that is how evaluation left it, and training trains it
    fit(model, Data(data.train, None), epochs=1, lr=0.05)
    assert not torch.equal(norm.running_mean, before)
    assert not model.training


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_an_interrupted_run_keeps_what_it_learnt(project, data):
    def interrupt(history):
        if len(history.train_loss) == 4:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    model, other = project(network()), project(network())
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, epochs=100, lr=0.02, on_epoch=interrupt)
    assert fit(other, data, epochs=4, lr=0.02).best_epoch == 4
    assert evaluate(model, *data.val) == evaluate(other, *data.val)


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_an_interrupted_run_that_only_got_worse_keeps_its_start(project, data):
    def interrupt(history):
        assert history.best_epoch == 0
        if len(history.train_loss) == 2:
            raise KeyboardInterrupt

    model = project(network())
    start = Data(data.train, (data.val[0], model.eval()(data.val[0]).detach().softmax(1)))  # no better answers exist
    before = evaluate(model, *start.val)
    with pytest.raises(KeyboardInterrupt):
        fit(model, start, epochs=100, lr=0.02, on_epoch=interrupt)
    assert evaluate(model, *start.val) == before


@pytest.mark.parametrize(
    ("project", "train"),
    [
        (lambda net: net, fit),
        (in_a_subspace, fit),
        (in_a_subspace, lambda model, *rest, **o: fit_many([model], *rest, **o)),
    ],
)
def test_training_goes_on_from_what_on_epoch_makes_of_the_model(project, train, data):
    model = project(network())
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = []

    def back(history):
        losses.extend(history.val_loss[-1:])
        model.load_state_dict(start)

    in_order = list(zip(data.train[0].split(100), data.train[1].split(100), strict=True))
    train(model, Data(in_order, data.val), epochs=3, lr=0.02, optimizer_class=torch.optim.SGD, on_epoch=back)
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-5)


@pytest.mark.parametrize("change", ["thaw", "replace", "add"])
def test_a_weight_that_nothing_would_train_is_noticed(change, data):
    net = network()
    net[0].requires_grad_(False)
    changes = {
        "thaw": lambda: net[0].requires_grad_(True),
        "replace": lambda: net.__setitem__(3, nn.Linear(16, 3)),
        "add": lambda: net.append(nn.Linear(3, 3)),
    }
    with pytest.raises(ValueError, match="was thawed, replaced or added .*another call of fit"):
        fit(net, data, epochs=2, lr=0.01, on_epoch=lambda _: changes[change]())


def test_a_layer_that_is_frozen_on_the_way_comes_back_with_the_best_weights(data):
    net = network()
    start = Data(data.train, (data.val[0], net.eval()(data.val[0]).detach().softmax(1)))
    before = net[0].weight.detach().clone()
    fit(net, start, epochs=2, lr=0.02, on_epoch=lambda _: net[0].requires_grad_(False))
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_interrupted_in_its_first_epoch_it_keeps_that_too(project, data):
    done = []

    def loss(outputs, targets):
        done.append(1)
        if len(done) == 60:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    model = project(network())
    before, _ = evaluate(model, *data.train)
    with pytest.raises(KeyboardInterrupt):
        fit(model, Data(data.train, None), epochs=1, lr=0.05, batch_size=10, loss=loss)
    assert evaluate(model, *data.train)[0] < 0.7 * before


def test_numbers_missing_from_the_test_set_are_no_accuracy(data):
    bad = Data(data.train, data.val, (data.test[0] * math.nan, data.test[1]))
    with pytest.warns(UserWarning, match="the test loss is nan: look for infinite or missing values in the test data"):
        history = fit(network(), bad, epochs=1, lr=0.02)
    assert math.isnan(history.test_accuracy)
    assert all(map(math.isnan, evaluate(network(), *bad.test)))


def test_nothing_to_evaluate_on(data):
    with pytest.raises(ValueError, match="there is no row to evaluate on"):
        evaluate(network(), data.val[0][:0], data.val[1][:0])


def test_numbers_of_numpy_are_numbers(data):
    options = {"epochs": np.int64(2), "seed": np.uint8(3), "batch_size": np.int16(100), "patience": np.int8(5)}
    first = fit(projected(), data, lr=np.float32(0.02), **options)
    again = fit(projected(), data, epochs=2, seed=3, batch_size=100, patience=5, lr=float(np.float32(0.02)))
    assert first.train_loss == again.train_loss


def test_divergence_is_what_the_history_says(data):
    with pytest.raises(DivergedError) as caught:
        fit(projected(), data, epochs=3, lr=1e30)
    assert caught.value.history.diverged and len(caught.value.history.train_loss) == 1


# ---- exceptions and results cross processes ----

EXAMPLES = {"message": "words", "history": History(train_loss=[1.0, math.inf], diverged=True)}
"""Arguments, by name, for the exceptions of the package that take some of their own."""


def exceptions_of_the_package():
    rooms = [
        importlib.import_module(room.name)
        for room in pkgutil.walk_packages(subspace_lib.__path__, "subspace_lib.")
        if not room.name.endswith(("__main__", "testing", "triton_kernels"))  # triton may not be there
    ]
    found = {value for room in rooms for value in vars(room).values() if isinstance(value, type)}
    return sorted(
        (one for one in found if issubclass(one, BaseException) and one.__module__.startswith("subspace_lib")),
        key=lambda one: one.__name__,
    )


def raised(exception):
    raise exception


@pytest.mark.parametrize("kind", exceptions_of_the_package())
def test_exceptions_cross_processes(kind):
    written = "__init__" in vars(kind)  # in Python; the others take any words
    error = kind(*[EXAMPLES[name] for name in inspect.signature(kind).parameters] if written else ["words"])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)


def test_a_run_that_diverges_in_a_pool_says_so():
    error = DivergedError("words", EXAMPLES["history"])
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(DivergedError, match="^words$") as caught:
        pool.apply(raised, (error,))
    assert caught.value.history == EXAMPLES["history"]


@pytest.mark.parametrize("project", [lambda net: net, in_a_subspace])
def test_images_lie_as_their_network_wants_them(project):
    """Channels last before convolutions; as they came before anything else, which would copy them back."""
    seen = {}

    class Looks(nn.Module):
        def forward(self, x):
            seen[kind] = x.is_contiguous()
            return x

    data = Data((torch.randn(12, 3, 5, 5), torch.arange(12) % 3), None)
    for kind, layers in {"plain": [nn.Flatten()], "convolution": [nn.Conv2d(3, 2, 3), nn.Flatten()]}.items():
        net = nn.Sequential(Looks(), *layers, nn.Linear(75 if kind == "plain" else 18, 3))
        fit(project(net), data, epochs=1, lr=0.1, batch_size=4)
    assert seen == {"plain": True, "convolution": False}


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_run_with_channels_last(channels):
    """Also where one channel could be read in either order."""
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 3))
    orders = set()
    net[2].register_forward_hook(lambda module, inputs, output: orders.add(output.stride()[1:]))
    images, labels = torch.randn(24, channels, 8, 8)[::2], torch.tensor([0, 1, 2] * 4)
    seen = Data(train=(images, labels), val=(images.clone(), labels))
    fit(net, seen, epochs=1, lr=0.1, batch_size=5)
    P = make_projection("one_hot", count_parameters(net), 10)
    fit(SubspaceModel(net, P), seen, epochs=1, lr=0.1, batch_size=5)
    assert orders == {(1, 8, 2)}
    evaluate(net, images, labels)
    assert orders == {(1, 8, 2)}
