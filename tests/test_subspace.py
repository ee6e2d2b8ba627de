"""SubspaceModel and SubspaceOptimizer: one map, two forms, the same curves."""

import copy
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from subspace_lib import (
    MLP,
    CheckpointError,
    LeNet,
    SubspaceModel,
    SubspaceOptimizer,
    checkpoint,
    count_parameters,
    make_projection,
)
from subspace_lib.projections import Projection


def normal_net():
    """Batch norm, tied weights and a frozen layer, in one network."""
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    net[4].requires_grad_(False)
    return net


def batches(count, *shape, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(*shape, generator=generator) for _ in range(count)]
    return [(x, x[:, :classes].argmax(1)) for x in inputs]


def model_and_net(name="dense", d=7):
    torch.manual_seed(0)
    net = normal_net()
    P = make_projection(name, count_parameters(net), d)
    return SubspaceModel(net, P), net, P


def test_theta_is_theta0_plus_P_z():
    model, net, P = model_and_net()
    assert list(model.parameters()) == [model.z]
    assert torch.equal(model.z, torch.zeros(7))
    trained = [p for p in net.parameters() if p.requires_grad]
    assert torch.equal(model.theta0, torch.cat([p.detach().flatten() for p in trained]))
    x = torch.randn(5, 6)
    torch.testing.assert_close(model(x), net(x))
    with torch.no_grad():
        model.z.normal_()
    torch.testing.assert_close(model.theta(), model.theta0 + P.to_dense() @ model.z)


def test_the_network_given_is_left_alone():
    model, net, _ = model_and_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        model.z.normal_()
    model(torch.randn(5, 6)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["dense", "sparse", "one_hot"])
def test_gradient_of_z_is_P_transposed_times_gradient_of_theta(name):
    model, net, P = model_and_net(name)
    ((x, y),) = batches(1, 16, 6)
    F.cross_entropy(model(x), y).backward()
    F.cross_entropy(net(x), y).backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])
    torch.testing.assert_close(model.z.grad, P.to_dense().T @ gradient)


def test_eval_and_to_reach_the_network():
    model, _, _ = model_and_net()
    x = torch.randn(5, 6)
    model(x)
    assert model.net[1].num_batches_tracked == 1
    model.eval()
    before = model.net[1].running_mean.clone()
    model(x)
    assert torch.equal(before, model.net[1].running_mean)
    model.double()
    assert model(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", ["dense", "sparse", "one_hot"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.SGD])
def test_both_forms_follow_the_same_curve(name, optimizer_class):
    model, net, P = model_and_net(name)
    plain = optimizer_class(model.parameters(), lr=0.05)
    quick = SubspaceOptimizer(net, P, optimizer_class, lr=0.05)
    for x, y in batches(30, 16, 6):
        losses = []
        for module, optimizer in ((model, plain), (net, quick)):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert model.z.norm() > 0.1, "the curves must lead somewhere"
    torch.testing.assert_close(quick.z.detach(), model.z.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net[1].running_mean, model.net[1].running_mean, rtol=1e-3, atol=1e-4)


def test_optimizer_with_scheduler_closure_and_state():
    _, net, P = model_and_net()
    optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    ((x, y),) = batches(1, 16, 6)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    state = copy.deepcopy(optimizer.state_dict())
    theta = [p.detach().clone() for p in net.parameters()]
    assert optimizer.step(closure) < first
    moved = [p.detach().clone() for p in net.parameters()]
    optimizer.load_state_dict(state)
    for p, before in zip(net.parameters(), theta, strict=True):
        assert torch.equal(p, before)
    optimizer.step(closure)
    for p, after in zip(net.parameters(), moved, strict=True):
        torch.testing.assert_close(p.detach(), after)


def test_optimizer_accumulates_gradients_and_takes_missing_ones_for_zero():
    _, net, P = model_and_net()
    optimizer = SubspaceOptimizer(net, P, torch.optim.SGD, lr=1.0)
    gradient = torch.zeros(P.D)
    for _ in range(2):
        net[0].bias.grad = torch.ones(6) + (0 if net[0].bias.grad is None else net[0].bias.grad)
    gradient[36:42] = 2  # after net[0].weight
    optimizer.step()
    torch.testing.assert_close(optimizer.z.detach(), -P.adjoint(gradient))
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_optimizer_notices_a_network_that_moved():
    _, net, P = model_and_net()
    optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=0.1)
    net.double()
    with pytest.raises(ValueError, match="moved or replaced after this SubspaceOptimizer was made"):
        optimizer.step()


def test_merge_gives_an_ordinary_network():
    model, net, _ = model_and_net()
    with torch.no_grad():
        model.z.normal_()
    model(torch.randn(5, 6))
    merged = model.merge()
    assert merged.state_dict().keys() == net.state_dict().keys()
    assert merged[2].weight is merged[0].weight
    assert [p.requires_grad for p in merged.parameters()] == [p.requires_grad for p in net.parameters()]
    merged.eval()
    model.eval()
    x = torch.randn(5, 6)
    torch.testing.assert_close(merged(x), model(x))
    with torch.no_grad():
        merged[0].weight.zero_()
    assert model.theta0.abs().sum() > 0


def test_state_dict_holds_z_and_not_P():
    model, _, P = model_and_net()
    names = set(model.state_dict())
    assert {"z", "theta0"} < names
    assert not any(name.startswith("P.") for name in names)
    assert sum(t.numel() for t in model.state_dict().values()) < P.D * 3


def factory():
    return LeNet(1)


def seeded(name="one_hot", factory=factory, seed=3):
    P = make_projection(name, count_parameters(factory()), 20, 5)
    model = SubspaceModel.from_seed(factory, P, seed)
    with torch.no_grad():
        model.z.copy_(torch.linspace(-1, 1, 20))
    return model


@pytest.mark.parametrize(("name", "options"), [("dense", {}), ("sparse", {"density": 0.01}), ("one_hot", {})])
def test_save_and_load_are_bit_exact(name, options, tmp_path):
    P = make_projection(name, 61_706, 20, 5, **options)
    model = SubspaceModel.from_seed(factory, P, 3)
    with torch.no_grad():
        model.z.normal_()
    model.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 2_000, "a seeded model is z and two recipes"
    again = SubspaceModel.load(tmp_path / "model.safetensors", factory)
    assert torch.equal(again.theta(), model.theta())
    assert again.P.options() == model.P.options()
    again.save(tmp_path / "again.safetensors")
    assert load_file(tmp_path / "again.safetensors").keys() == {"z"}


def test_save_keeps_theta0_and_buffers_where_no_seed_can(tmp_path):
    model, _, _ = model_and_net()
    model(torch.randn(5, 6))
    model.save(tmp_path / "model.safetensors")
    again = SubspaceModel.load(tmp_path / "model.safetensors", normal_net)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_from_seed_leaves_the_generator_alone():
    P = make_projection("one_hot", 61_706, 20, 5)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = SubspaceModel.from_seed(factory, P, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.randn(3)
    assert torch.equal(first.theta0, seeded().theta0)
    assert not torch.equal(first.theta0, seeded(seed=4).theta0)


def edited(path, **changes):
    """The checkpoint at ``path`` with entries of its description changed, as a hand would."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if isinstance(changes.get("description"), dict):
        about = json.loads(metadata["description"]) | changes["description"]
        if "checksum" not in changes["description"]:
            del about["checksum"]
            about["checksum"] = checkpoint.checksum(tensors, about)
        changes["description"] = json.dumps(about)
    save_file(tensors, path, metadata | changes)


def test_load_refuses_what_does_not_belong(tmp_path):
    path = tmp_path / "model.safetensors"
    seeded().save(path)
    with pytest.raises(CheckpointError, match="another architecture: P has D = 61706 rows"):
        SubspaceModel.load(path, lambda: MLP(784))
    with pytest.raises(CheckpointError, match="another architecture: it has"):
        SubspaceModel.load(path, lambda: nn.Linear(61_705, 1))
    with pytest.raises(CheckpointError, match="theta0 rebuilt from its seed is not the one"):
        SubspaceModel.load(path, lambda: LeNet(1).apply(lambda m: nn.init.zeros_(m.bias) if hasattr(m, "bias") else m))
    copy = tmp_path / "copy.safetensors"
    for changes, words in [
        ({"description": {"theta0_seed": 4}}, "theta0 rebuilt"),
        ({"description": {"P": {"name": "one_hot", "D": 61_706, "d": 20, "seed": 6}}}, "P rebuilt from its seed"),
        ({"description": {"checksum": 0}}, "is damaged: its numbers are not those that were saved"),
        ({"description": "[]"}, "has no whole description"),
        ({"format": "subspace_lib 99"}, "has format 'subspace_lib 99', this version of subspace_lib reads"),
    ]:
        shutil.copy(path, copy)
        edited(copy, **changes)
        with pytest.raises(CheckpointError, match=words):
            SubspaceModel.load(copy, factory)
    copy.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        SubspaceModel.load(copy, factory)
    save_file({"z": torch.zeros(3)}, copy)
    with pytest.raises(CheckpointError, match="no format of this library"):
        SubspaceModel.load(copy, factory)
    with pytest.raises(FileNotFoundError):
        SubspaceModel.load(tmp_path / "none.safetensors", factory)


def test_save_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    seeded().save(path)
    before = path.read_bytes()

    def fail(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("subspace_lib.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        seeded(seed=9).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_refuses_a_projection_without_a_recipe(tmp_path):
    class Mine(Projection):
        name = "mine"

        def _multiply(self, z):
            return z.repeat_interleave(self.D // self.d, -1)

        def _multiply_transposed(self, v):
            return v.reshape(*v.shape[:-1], self.d, -1).sum(-1)

    model = SubspaceModel(nn.Linear(4, 1, bias=False), Mine(4, 2))
    with pytest.raises(ValueError, match="cannot save a Mine: only the families of PROJECTIONS"):
        model.save(tmp_path / "model.safetensors")


def test_z_of_another_shape_and_further_parameters_are_refused():
    net, P = nn.Linear(4, 2), make_projection("dense", 10, 3)
    optimizer = SubspaceOptimizer(net, P, torch.optim.Adam, lr=0.1)
    with pytest.raises(ValueError, match=r"z must have shape \(d = 3,\) and real numbers, got \(1,\)"):
        optimizer.set_z(torch.ones(1))
    state = optimizer.state_dict() | {"z": torch.zeros(5)}
    state["param_groups"] = [state["param_groups"][0] | {"lr": 0.5}]
    with pytest.raises(ValueError, match=r"got \(5,\)"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    with pytest.raises(ValueError, match="trains z alone"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(TypeError, match="expected a network and a Projection, got Linear and str"):
        SubspaceModel(net, "dense")


@pytest.mark.parametrize("form", [SubspaceModel, lambda net, P: SubspaceOptimizer(net, P, torch.optim.Adam)])
def test_bad_input(form):
    P = make_projection("dense", 10, 2)
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        form(nn.ReLU(), P)
    with pytest.raises(ValueError, match="P has D = 10 rows but Linear has 12 trainable parameters; use D = 12"):
        form(nn.Linear(5, 2), P)
    with pytest.raises(ValueError, match="P is torch.float32 on cpu but a weight is torch.float64"):
        form(nn.Linear(4, 2, dtype=torch.float64), P)
