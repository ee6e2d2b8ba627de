"""The training loop: what it promises about curves, seeds, stopping and bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subspace_lib import (
    MLP,
    Data,
    DivergedError,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    evaluate,
    fit,
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
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1, got 1.5"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
    ],
)
def test_bad_numbers(options, words, data):
    with pytest.raises(ValueError, match=words):
        fit(network(), data, **{"epochs": 1, "lr": 0.1} | options)


def test_a_model_without_parameters(data):
    with pytest.raises(ValueError, match="Flatten has no trainable parameter; there is nothing to fit"):
        fit(nn.Flatten(), data, epochs=1, lr=0.1)


def test_the_optimizer_form_is_what_fit_uses(data, monkeypatch):
    steps = []
    original = SubspaceOptimizer.step
    monkeypatch.setattr(SubspaceOptimizer, "step", lambda self, *a: steps.append(1) or original(self, *a))
    assert fit(projected(), data, epochs=1, lr=0.1).steps == len(steps)
