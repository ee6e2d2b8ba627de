"""What a GPU computes is what the CPU computes. Nothing here runs without a GPU; the workflow `gpu` has one."""

import contextlib
import importlib.util

import pytest
import torch

from subspace_lib import (
    MLP,
    PROJECTIONS,
    Data,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    fit,
    fit_many,
    graphs,
    make_projection,
)
from subspace_lib.study.benchmark import asked_for, benchmark, pytorch_alone

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(name, seed):
    return SubspaceModel.from_seed(
        lambda: MLP(20), make_projection(name, count_parameters(MLP(20)), 30, seed), seed=seed
    )


@pytest.fixture
def data():
    x = numbers(600, 20)
    y = (x[:, :10] @ numbers(10, 3, seed=1)).argmax(1)
    return Data(train=(x[:400], y[:400]), val=(x[400:500], y[400:500]), test=(x[500:], y[500:]))


@pytest.mark.parametrize(
    ("name", "options"), [(name, one) for name in PROJECTIONS for one in PROJECTIONS[name].variants]
)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_same_P(name, options, dtype, rtol):
    D, d = 1314, 1314 if PROJECTIONS[name].square else 70
    here = make_projection(name, D, d, seed=3, dtype=dtype, **options)
    there = make_projection(name, D, d, seed=3, dtype=dtype, **options).to(DEVICE)
    z, v = numbers(2, d, dtype=dtype), numbers(2, D, dtype=dtype)
    close = {"rtol": rtol, "atol": rtol}
    torch.testing.assert_close(there(z.to(DEVICE)).cpu(), here(z), **close)
    torch.testing.assert_close(there.adjoint(v.to(DEVICE)).cpu(), here.adjoint(v), **close)
    out = torch.empty(D, dtype=dtype, device=DEVICE)
    there.write(v[0].to(DEVICE), z[0].to(DEVICE), out)
    torch.testing.assert_close(out.cpu(), v[0] + here(z[0]), **close)
    torch.testing.assert_close(there.pull(v[1].clone().to(DEVICE)).cpu(), here.adjoint(v[1]), **close)


@pytest.mark.parametrize("name", ["one_hot", "hadamard"])
@pytest.mark.parametrize(("D", "d"), [(1314, 70), (100_000, 60), (472_610, 4500)])
def test_kernels_in_triton_give_what_PyTorch_gives(name, D, d):
    pytest.importorskip("triton")
    P = make_projection(name, D, d, seed=3).to(DEVICE)
    z, theta0, v = (numbers(size).to(DEVICE) for size in (d, D, D))
    found = []
    for asked in (pytorch_alone(), contextlib.nullcontext()):
        with asked:
            P.write(theta0, z, out := torch.empty_like(theta0))
            found.append((out, P.pull(v.clone())))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_same_steps(name):
    found = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        net = MLP(20).to(device)
        D = count_parameters(net)
        P = make_projection(name, D, D if PROJECTIONS[name].square else 30).to(device)
        optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            net(numbers(64, 20, seed=step).to(device)).square().mean().backward()
            optimizer.step()
        found.append(optimizer.z.detach().cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_fit_and_a_saved_model(data, tmp_path):
    here, there = build("hadamard", 0), build("hadamard", 0)
    ours = fit(here, data, epochs=3, lr=0.02, seed=0)
    theirs = fit(there, data.to(DEVICE), epochs=3, lr=0.02, seed=0)
    assert theirs.train_loss == pytest.approx(ours.train_loss, rel=1e-2)
    assert there.z.device.type == DEVICE
    there.save(tmp_path / "model.safetensors")
    loaded = SubspaceModel.load(tmp_path / "model.safetensors", lambda: MLP(20))
    torch.testing.assert_close(loaded.theta(), there.theta().cpu(), rtol=1e-4, atol=1e-5)


def test_many_at_once(data):
    data = data.to(DEVICE)
    runs = [("one_hot", 0), ("hadamard", 1), ("fastfood", 2), ("sparse", 3)]
    together = fit_many([build(*run) for run in runs], data, epochs=3, lr=0.02, seed=0)
    for run, history in zip(runs, together, strict=True):
        alone = fit(build(*run), data, epochs=3, lr=0.02, seed=0)
        assert history.train_loss == pytest.approx(alone.train_loss, rel=1e-2)


ROWS, FULL = 60, 6
"""Rows of a batch, and full batches of an epoch, of the data above; the last batch has fewer."""


@pytest.fixture
def without_and_in_graphs(data, monkeypatch):
    """Train what ``make`` makes as always, and in graphs, of which there must be so many; both with their histories."""
    recorded, record = [], graphs.Recorder.record

    def counting(self, compute):
        replay, losses = record(self, compute)
        replayed = []
        recorded.append(replayed)
        return lambda: replayed.append(replay()), losses

    monkeypatch.setattr(graphs.Recorder, "record", counting)

    def train(make, count=1, change=None, **how):
        how = {"epochs": 3, "lr": 0.02, "batch_size": ROWS} | how
        found = []
        recorded.clear()
        for value in ("0", ""):
            with asked_for(graphs.GRAPHS, value):
                torch.manual_seed(0)
                model = make()
                if change is not None:
                    how["on_epoch"] = lambda history, model=model: change(model, history)
                run = fit_many if isinstance(model, list) else fit
                histories = run(model, data.to(DEVICE), **how)
                found.append((model, histories if isinstance(model, list) else [histories]))
        assert [len(replayed) for replayed in recorded] == [how["epochs"] * FULL // count - graphs.WARM_UP] * count
        return found

    return train


graphs_alone = pytest.mark.filterwarnings("error:no step can be recorded")


def assert_alike(found):
    """The same curves, and the same numbers in the end."""
    (model, histories), (other, others) = found
    for ours, theirs in zip(others, histories, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-2)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-2)
        assert ours.steps == theirs.steps
    pairs = zip(other, model, strict=True) if isinstance(model, list) else [(other, model)]
    for one, same in pairs:
        there = same.state_dict()
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(tensor, there[name], rtol=2e-2, atol=5e-3)


def normalised(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(20, 30, bias=False), torch.nn.BatchNorm1d(30), torch.nn.ReLU(), torch.nn.Linear(30, 10)
    )


def convolutional():
    torch.manual_seed(0)
    layers = torch.nn.Unflatten(1, (1, 4, 5)), torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.MaxPool2d(2)
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24, 10))


def in_subspace(make, name="hadamard", seed=0):
    D = count_parameters(make())
    return SubspaceModel(make(), make_projection(name, D, D if PROJECTIONS[name].square else 30, seed))


@graphs_alone
@pytest.mark.parametrize(
    "make", [lambda: MLP(20), normalised, convolutional], ids=["plain", "normalised", "convolutions"]
)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_graphs_of_a_network(make, optimizer, without_and_in_graphs):
    assert_alike(without_and_in_graphs(make, optimizer_class=optimizer))


@graphs_alone
@pytest.mark.parametrize("name", PROJECTIONS)
def test_graphs_in_a_subspace(name, without_and_in_graphs):
    assert_alike(without_and_in_graphs(lambda: in_subspace(normalised, name)))


@graphs_alone
@pytest.mark.parametrize("make", [normalised, convolutional])
def test_graphs_of_many(make, without_and_in_graphs):
    runs = [(name, seed) for seed, name in enumerate(("one_hot", "hadamard", "fastfood", "sparse"))]
    assert_alike(without_and_in_graphs(lambda: [in_subspace(make, *run) for run in runs], lr=[0.01, 0.02, 0.03, 0.02]))


@graphs_alone
@pytest.mark.parametrize("many", [False, True])
def test_graphs_of_products_by_pytorch_alone(many, without_and_in_graphs):
    def make():
        models = [in_subspace(normalised, name) for name in ("hadamard", "one_hot")]
        return models if many else models[0]

    with pytorch_alone():
        assert_alike(without_and_in_graphs(make))


@graphs_alone
def test_graphs_are_recorded_anew_after_on_epoch(without_and_in_graphs):
    def freeze(model, history):
        model[0].requires_grad_(len(history.train_loss) == 2)

    def back(model, history):
        model.z.grad = None
        model.net[1].momentum = 0.5  # of the network that is given, not of the one that is trained

    assert_alike(without_and_in_graphs(normalised, 3, freeze))
    assert_alike(without_and_in_graphs(lambda: in_subspace(normalised), 3, back))


@graphs_alone
@pytest.mark.parametrize("kind", ["plain", "subspace", "many"])
def test_graphs_draw_new_random_numbers(kind, without_and_in_graphs):
    """Dropout of all: each replay of a step that moves nothing has another loss."""

    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Dropout(0.5), torch.nn.Linear(30, 10))

    made = {"plain": make, "subspace": lambda: in_subspace(make), "many": lambda: [in_subspace(make) for _ in range(3)]}
    (_, expected), (_, found) = without_and_in_graphs(made[kind], epochs=6)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.tensor(ours.train_loss).isfinite().all() and ours.train_loss[-1] < ours.train_loss[0]
        assert ours.train_loss[-1] == pytest.approx(theirs.train_loss[-1], rel=0.2)


def test_benchmark_measures():
    rows = list(benchmark(DEVICE, in_features=20, d=50, rounds=2, scale_D=(2000,), scale_d=(10,)))
    assert all(min(row["forward_ms"], row["adjoint_ms"], row.get("step_ms", 1)) > 0 for row in rows)
    if importlib.util.find_spec("triton"):
        steps = {row["projection"]: row for row in rows if row["part"] == "step" and not row["layout"]}
        timed = {name for name, row in steps.items() if min(row.get("triton_ms", 0), row.get("triton_graph_ms", 0)) > 0}
        assert timed == {"one_hot", "hadamard"}


@graphs_alone
def test_graphs_of_a_network_whose_output_is_held(without_and_in_graphs):
    held = []

    def make():
        held.append((net := normalised().to(DEVICE))(numbers(8, 20).to(DEVICE)))
        return net

    assert_alike(without_and_in_graphs(make))


def test_a_recording_that_fails_leaves_all_as_it_was(data, monkeypatch, without_and_in_graphs):
    """The random numbers of the GPU among it; nothing more is recorded, though it could be."""
    pull = graphs.One.pull
    monkeypatch.setattr(graphs, "_failed", [])

    def synchronises(self, losses):
        losses.item()
        pull(self, losses)

    found = []
    for value in ("0", ""):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Dropout(0.5), torch.nn.Linear(30, 10)).to(DEVICE)
        warned = pytest.warns(UserWarning, match="no step can be recorded")
        with monkeypatch.context() as patch, warned if value == "" else contextlib.nullcontext():
            patch.setattr(graphs.One, "pull", synchronises)
            patch.setenv(graphs.GRAPHS, value)
            found.append(fit(net, data.to(DEVICE), epochs=3, lr=0.02, batch_size=ROWS).train_loss)
    assert found[1] == pytest.approx(found[0], rel=1e-2)
    assert graphs._failed
    with pytest.raises(AssertionError):
        without_and_in_graphs(normalised)
    monkeypatch.setattr(graphs, "_failed", [])
    assert_alike(without_and_in_graphs(normalised))
