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
    make_projection,
)
from subspace_lib.study.benchmark import benchmark, pytorch_alone

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


def test_benchmark_measures():
    rows = list(benchmark(DEVICE, in_features=20, d=50, rounds=2, scale_D=(2000,), scale_d=(10,)))
    assert all(min(row["forward_ms"], row["adjoint_ms"], row.get("step_ms", 1)) > 0 for row in rows)
    if importlib.util.find_spec("triton"):
        steps = {row["projection"]: row for row in rows if row["part"] == "step" and not row["layout"]}
        timed = {name for name, row in steps.items() if min(row.get("triton_ms", 0), row.get("triton_graph_ms", 0)) > 0}
        assert timed == {"one_hot", "hadamard"}
