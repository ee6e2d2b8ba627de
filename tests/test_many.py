"""fit_many goes the way of fit, run by run."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subspace_lib import (
    MLP,
    Data,
    DivergedError,
    SubspaceModel,
    count_parameters,
    evaluate,
    fit,
    fit_many,
    make_projection,
)
from subspace_lib.networks import kept


def noisy_classes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(42))
    return centres[y] + torch.randn(n, 8, generator=generator), y


@pytest.fixture
def data():
    return Data(train=noisy_classes(500, 0), val=noisy_classes(300, 1), test=noisy_classes(300, 2))


def with_batch_norm(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def convolutional(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 5, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)
    )


def models(make, runs):
    return [
        SubspaceModel(make(seed), make_projection(name, count_parameters(make(seed)), d, seed))
        for name, d, seed in runs
    ]


RUNS = [("one_hot", 20, 0), ("one_hot", 40, 1), ("hadamard", 40, 0), ("dense", 3, 2)]
RATES = [0.02, 0.1, 0.05, 0.05]


@pytest.mark.parametrize("make", [with_batch_norm, convolutional])
@pytest.mark.parametrize("patience", [None, 1])
def test_same_curves_as_fit(make, patience, data):
    together, alone = models(make, RUNS), models(make, RUNS)
    histories = fit_many(together, data, epochs=12, lr=RATES, seed=7, patience=patience)
    lengths = set()
    for ours, model, other, rate in zip(histories, together, alone, RATES, strict=True):
        theirs = fit(other, data, epochs=12, lr=rate, seed=7, patience=patience)
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-3)
        assert (ours.best_epoch, ours.steps) == (theirs.best_epoch, theirs.steps)
        assert ours.test_accuracy == pytest.approx(theirs.test_accuracy, abs=0.011)
        torch.testing.assert_close(model.z, other.z, rtol=1e-2, atol=1e-3)
        lengths.add(len(ours.train_loss))
        for name, buffer in kept(other.net).items():
            torch.testing.assert_close(model.net.get_buffer(name), buffer, rtol=1e-2, atol=1e-3)
    if patience and make is convolutional:
        assert len(lengths) > 1, "some run should stop before the others"


def test_one_rate_serves_all_and_no_validation_set_is_needed(data):
    together, alone = models(with_batch_norm, RUNS[:2]), models(with_batch_norm, RUNS[:2])
    bare = Data(train=data.train, val=None)
    for ours, other in zip(fit_many(together, bare, epochs=2, lr=0.05), alone, strict=True):
        assert ours.train_loss == pytest.approx(fit(other, bare, epochs=2, lr=0.05).train_loss, rel=1e-3)
        assert ours.val_loss == [] and ours.best_epoch == 2


def test_a_run_that_diverges_ends_alone(data):
    runs = models(with_batch_norm, RUNS[:2])
    good, bad = fit_many(runs, data, epochs=3, lr=[0.02, 1e30])
    assert bad.diverged and len(bad.train_loss) == 1 and runs[1].z.isfinite().all()
    assert not good.diverged and len(good.train_loss) == 3 and math.isfinite(good.train_loss[-1])
    with pytest.raises(DivergedError):
        fit(models(with_batch_norm, RUNS[1:2])[0], data, epochs=3, lr=1e30)


def test_bad_input(data):
    with pytest.raises(ValueError, match="got 0 models and 0 learning rates"):
        fit_many([], data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="got 2 models and 1 learning rates; give one rate, or one a model"):
        fit_many(models(with_batch_norm, RUNS[:2]), data, epochs=1, lr=[0.1])
    other = SubspaceModel(MLP(8, 5, classes=3), make_projection("one_hot", count_parameters(MLP(8, 5, classes=3)), 4))
    with pytest.raises(ValueError, match="the models differ in architecture or type"):
        fit_many([*models(with_batch_norm, RUNS[:1]), other], data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="labels run from 0 to 2, but the network has 2 outputs"):
        fit_many([SubspaceModel(nn.Linear(8, 2), make_projection("dense", 18, 4))], data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="lr must be a positive number, got -1"):
        fit_many(models(with_batch_norm, RUNS[:1]), data, epochs=1, lr=[-1])


class Other(nn.Linear):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5)),
        lambda: nn.Sequential(Other(8, 3), nn.Dropout(0.1)),
        lambda: nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.1).eval()),
        lambda: nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.1)).double(),
    ],
)
def test_networks_that_differ_beside_their_weights_are_refused(make, data):
    nets = [nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.1)), make()]
    pair = [SubspaceModel(net, make_projection("one_hot", 27, 5, dtype=net[0].weight.dtype)) for net in nets]
    with pytest.raises(ValueError, match="the models differ in architecture or type"):
        fit_many(pair, data, epochs=1, lr=0.1)
    nets[1] = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.1))
    nets[1].register_buffer("more", torch.zeros(2))
    for one, other in (nets, nets[::-1]):
        with pytest.raises(ValueError, match="the models differ in architecture or type"):
            fit_many(
                [SubspaceModel(net, make_projection("one_hot", 27, 5)) for net in (one, other)], data, epochs=1, lr=0.1
            )


class Centred(nn.Module):
    """Follows the mean of its inputs, in a new tensor each time."""

    def __init__(self):
        super().__init__()
        self.linear, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        hidden = self.linear(x)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * hidden.detach().mean(0)
        return self.last(hidden - self.mean)


def test_buffers_that_are_replaced_follow_each_run(data):
    def pair():
        torch.manual_seed(0)
        return models(lambda seed: Centred(), [("one_hot", 20, 0), ("one_hot", 20, 1)])

    together, alone = pair(), pair()
    histories = fit_many(together, data, epochs=2, lr=0.02)
    for run, model, history in zip(together, alone, histories, strict=True):
        assert fit(model, data, epochs=2, lr=0.02).val_loss == pytest.approx(history.val_loss, rel=1e-4)
        torch.testing.assert_close(run.net.mean, model.net.mean, rtol=1e-3, atol=1e-5)


def test_a_later_batch_that_does_not_fit_is_named(data):
    x, y = data.train
    with pytest.raises(ValueError, match="batch 2 of epoch 1 does not go through network, loss and metric"):
        fit_many(models(with_batch_norm, RUNS[:1]), Data([(x, y), (x, y + 3)], None), epochs=1, lr=0.1)


def test_what_are_no_models(data):
    model = models(with_batch_norm, RUNS[:1])[0]
    for wrong, words in (
        (model, "models must be a sequence of SubspaceModels, got one SubspaceModel"),
        ([nn.Linear(8, 3)], "fit_many trains SubspaceModels, got a Linear"),
    ):
        with pytest.raises(TypeError, match=words):
            fit_many(wrong, data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="one model stands there twice"):
        fit_many([model, model], data, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times a step"):
        fit_many([model], data, epochs=1, lr=0.1, optimizer_class=torch.optim.LBFGS)
    assert not model.z.any()
    with pytest.raises(ValueError, match="has no trainable parameter"):
        fit_many([model.requires_grad_(False)], data, epochs=1, lr=0.1)


def test_after_an_epoch_the_models_stand_where_training_stands(data):
    pair, seen = models(with_batch_norm, RUNS[:2]), []
    rates = np.array([0.02, 0.03])
    histories = fit_many(
        (model for model in pair), data, epochs=2, lr=rates,
        on_epoch=lambda history: seen.append((history.val_loss[-1], [evaluate(m, *data.val)[0] for m in pair])),
    )  # fmt: skip
    for i, (loss, found) in enumerate(seen):
        assert found[i % 2] == pytest.approx(loss, rel=1e-4)
    assert len(histories) == 2


def alike(make, count=2, d=6):
    D = count_parameters(make(0))
    return [SubspaceModel(make(0), make_projection("one_hot", D, d, 0)) for _ in range(count)]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x.view(-1, 2, 4))[0][:, -1])


class Branching(nn.Linear):
    def forward(self, x):
        scores = super().forward(x)
        return scores if scores.sum() > 0 else -scores


class Unbranched(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)  # of the batch, which all runs share


def test_dropout_draws_for_every_run_on_its_own(data):
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))

    bare = Data(data.train, None)
    torch.manual_seed(0)
    first, second = fit_many(alike(make), bare, epochs=1, lr=0.02)
    assert first.train_loss != second.train_loss
    torch.manual_seed(0)
    again = fit_many(alike(make), bare, epochs=1, lr=0.02)
    assert [first.train_loss, second.train_loss] == [one.train_loss for one in again]


@pytest.mark.parametrize(
    ("make", "why"), [(lambda seed: Recurrent(), "gru"), (lambda seed: Branching(8, 3), "data-dependent")]
)
def test_what_cannot_run_side_by_side_is_sent_to_fit(make, why, data):
    runs = alike(make)
    with pytest.raises(ValueError, match=rf"fit_many cannot run this \w+ side by side; use fit for each: .*{why}"):
        fit_many(runs, data, epochs=1, lr=0.02)
    assert all(not model.z.any() for model in runs)
    assert math.isfinite(fit(runs[0], data, epochs=1, lr=0.02).val_loss[1])


def test_a_branch_on_the_batch_serves_all(data):
    ours, other = alike(lambda seed: Unbranched(8, 3)), alike(lambda seed: Unbranched(8, 3))
    for model, again in zip(ours, other, strict=True):
        again.theta0.copy_(model.theta0)
    history = fit_many(ours, data, epochs=1, lr=0.02)[0]
    assert history.train_loss == pytest.approx(fit(other[0], data, epochs=1, lr=0.02).train_loss, rel=1e-4)


def test_regression_batches_metric_and_schedule_as_in_fit(data):
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))

    x = data.train[0]
    batches = [(rows, rows[:, :2] - 1) for rows in x.split(90)]
    regression = Data(train=batches, val=(x, x[:, :2] - 1), test=batches)
    together, alone = models(make, RUNS[:2]), models(make, RUNS[:2])
    seen = []
    options = {"loss": F.mse_loss, "metric": F.l1_loss, "schedule": lambda done: 1 - done}
    histories = fit_many(together, regression, epochs=3, lr=0.05, on_epoch=seen.append, **options)
    for ours, other in zip(histories, alone, strict=True):
        theirs = fit(other, regression, epochs=3, lr=0.05, **options)
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.val_accuracy == pytest.approx(theirs.val_accuracy, rel=1e-4)
        assert (ours.test_loss, ours.test_accuracy) == pytest.approx((theirs.test_loss, theirs.test_accuracy), rel=1e-4)
        assert sum(one is ours for one in seen) == 3


def test_an_interrupted_sweep_keeps_what_every_run_learnt(data):
    def interrupt(history):
        if len(history.train_loss) == 3:
            raise KeyboardInterrupt

    together, alone = models(with_batch_norm, RUNS[:2]), models(with_batch_norm, RUNS[:2])
    with pytest.raises(KeyboardInterrupt):
        fit_many(together, data, epochs=9, lr=0.01, on_epoch=interrupt)
    fit_many(alone, data, epochs=3, lr=0.01)
    for model, other in zip(together, alone, strict=True):
        torch.testing.assert_close(model.z, other.z)


def test_a_last_batch_of_one_with_batch_norm(data):
    few = Data((data.train[0][:129], data.train[1][:129]), None)
    with pytest.raises(ValueError, match="batch_size = 128 leaves one row for the last batch"):
        fit_many(models(with_batch_norm, RUNS[:2]), few, epochs=1, lr=0.02)
