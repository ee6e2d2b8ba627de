"""Checkpoints: anybody's network, old files, files that lie, and files that were damaged."""

import json
import math
import threading
import tracemalloc
import zlib

import pytest
import torch
from damage import damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from subspace_lib import CheckpointError, SubspaceModel, checkpoint, count_parameters, make_projection


def small():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net[2].requires_grad_(False)
    return net


def saved(path, factory=small, name="one_hot", d=6, dtype=None, train=True):
    model = SubspaceModel.from_seed(factory, make_projection(name, count_parameters(factory()), d), 3)
    if train:
        model(torch.randn(8, 5))
    with torch.no_grad():
        model.z.normal_()
    if dtype is not None:
        model.to(dtype)
    model.save(path)
    return model


def assert_same(a, b):
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name
    assert torch.equal(a.theta(), b.theta())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["one_hot", "dense"])
def test_a_model_of_any_type_comes_back(name, dtype, tmp_path):
    model = saved(tmp_path / "m.safetensors", name=name, dtype=dtype)
    assert_same(SubspaceModel.load(tmp_path / "m.safetensors", small), model)


class Odd(nn.Module):
    """Shared and expanded buffers, a slice, one layer under two names, tied frozen weights, and extra state."""

    def __init__(self):
        super().__init__()
        self.a = self.same = nn.Linear(5, 5)
        self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight
        self.embed.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(4))
        self.a.register_buffer("mean", self.mean)
        self.register_buffer("slice", self.mean[:2])
        self.register_buffer("wide", torch.ones(1).expand(3))
        self.register_buffer("phase", torch.tensor([1j, 2.0]))
        self.register_buffer("flag", torch.tensor(True))
        self.steps = [0, "none"]

    def get_extra_state(self):
        return self.steps

    def set_extra_state(self, state):
        self.steps = state

    def forward(self, x):
        return self.same(self.a(x))


def test_whatever_a_network_has_is_saved(tmp_path):
    model = saved(tmp_path / "m.safetensors", Odd)
    with torch.no_grad():
        model.net.mean.copy_(torch.arange(4.0))
        model.net.phase.mul_(2)
    model.net.steps = [7, "seven"]
    model.save(tmp_path / "m.safetensors")
    again = SubspaceModel.load(tmp_path / "m.safetensors", Odd)
    for (name, ours), theirs in zip(model.net.named_buffers(), again.net.buffers(), strict=True):
        assert torch.equal(ours.detach(), theirs.detach()) if ours.numel() else theirs.numel() == 0, name
    assert again.net.steps == [7, "seven"]
    assert again.net.a.mean is again.net.mean
    model.net.steps = {object()}
    with pytest.raises(ValueError, match="cannot save the extra state of '', a set"):
        model.save(tmp_path / "m.safetensors")


def test_a_frozen_base_that_the_factory_rebuilds_is_not_written(tmp_path):
    def base():
        net = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 4))
        net[0].requires_grad_(False)
        return net

    path = tmp_path / "m.safetensors"
    model = SubspaceModel.from_seed(base, make_projection("one_hot", 1028, 10), 0)
    model.save(path)
    assert path.stat().st_size < 2_000
    assert_same(SubspaceModel.load(path, base), model)

    def another_base():
        net = base()
        nn.init.zeros_(net[0].weight)
        return net

    with pytest.raises(CheckpointError, match="'0.weight' rebuilt from its seed is not the one that was saved"):
        SubspaceModel.load(path, another_base)
    model.net[0].get_buffer("weight")[3, 4] += 1
    model.save(path)
    assert path.stat().st_size > 4 * 256 * 256, "what was changed is written"
    assert_same(SubspaceModel.load(path, base), model)


def write_old(model, path, **changes):
    """The bytes that the first version of the format had, written by hand."""
    tensors = {f"buffer.{name}": t.clone() for name, t in model.net.state_dict().items()} | {"z": model.z.detach()}
    total = 0
    for _, tensor in sorted(tensors.items()):
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), total)
    about = {
        "P": model.P.recipe(),
        "dtype": str(model.P.dtype).removeprefix("torch."),
        "theta0_seed": 3,
        "theta0": checkpoint_fingerprint(model.theta0),
        "probe": checkpoint_fingerprint(model.P(torch.arange(model.P.d, dtype=model.P.dtype).cos())),
        "weights": model.layout(),
        "checksum": total,
    }
    save_file(tensors, path, {"format": "subspace_lib 1", "description": json.dumps(about | changes)})


def checkpoint_fingerprint(v):
    v = v.detach().double()
    return [float(v.sum()), float(v @ torch.arange(len(v), dtype=torch.float64).cos()), float(v.norm())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_of_the_first_format_still_load(dtype, tmp_path):
    model = saved(tmp_path / "new.safetensors", dtype=dtype)
    write_old(model, tmp_path / "old.safetensors")
    assert_same(SubspaceModel.load(tmp_path / "old.safetensors", small), model)


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "dense", "D": 10**8, "d": 6, "seed": 0},
        {"name": "dense", "D": 32, "d": 10**8, "seed": 0},
        {"name": "layerwise", "blocks": [{"name": "dense", "D": 10**8, "d": 6, "seed": 0}]},
        {"name": "one_hot", "D": "32", "d": 6, "seed": 0},
        {"name": ["one_hot"], "D": 32, "d": 6, "seed": 0},
        {"name": "one_hot", "D": 32, "d": 6, "seed": -1},
        {"name": "layerwise"},
        {"name": "layerwise", "blocks": [{"name": "dense", "D": 32, "d": 6, "seed": 0}] * 1000},
        {
            "name": "scaled",
            "factor": 2.0,
            "P": {"name": "layerwise", "blocks": [{"name": "dense", "D": 32, "d": 6}] * 9},
        },
        {},
    ],
)
def test_what_a_file_says_is_checked_before_it_is_done(recipe, tmp_path):
    path = tmp_path / "m.safetensors"
    model = saved(path)
    write_old(model, path, P=recipe)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"m\.safetensors (names a P|was saved from|cannot be rebuilt)"):
        SubspaceModel.load(path, small)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def outcome(path, model, factory=small):
    """The same model, or an error of ours: anything else is raised."""
    try:
        again = SubspaceModel.load(path, factory)
    except CheckpointError:
        return
    assert_same(again, model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    model = saved(folder / "new.safetensors")
    write_old(model, folder / "old.safetensors")
    return folder, model


@fuzz
@given(data=st.data())
def test_no_damage_goes_through_or_ends_in_a_raw_error(files, data):
    folder, model = files
    whole = (folder / data.draw(st.sampled_from(["new.safetensors", "old.safetensors"]))).read_bytes()
    path = folder / "damaged.safetensors"
    path.write_bytes(damaged(data, whole))
    outcome(path, model)


odd = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


@fuzz
@given(data=st.data())
def test_no_description_ends_in_a_raw_error(files, data):
    """Fields dropped, retyped and huge, under a right checksum."""
    folder, model = files
    name = data.draw(st.sampled_from(["new.safetensors", "old.safetensors"]))
    with safe_open(folder / name, framework="pt") as file:
        metadata = file.metadata()
    about, tensors = json.loads(metadata["description"]), load_file(folder / name)
    field = data.draw(st.sampled_from(sorted(about)))
    target = about
    if isinstance(about[field], dict) and about[field] and data.draw(st.booleans()):
        target, field = about[field], data.draw(st.sampled_from(sorted(about[field])))
    if data.draw(st.booleans()):
        del target[field]
    else:
        target[field] = data.draw(odd)
    if name.startswith("new"):
        about.pop("checksum", None)
        about["checksum"] = checkpoint.checksum(tensors, about)
    path = folder / "damaged.safetensors"
    save_file(tensors, path, metadata | {"description": json.dumps(about)})
    outcome(path, model)


def test_threads_draw_their_own_theta0():
    P = make_projection("one_hot", count_parameters(small()), 4)
    right = {seed: SubspaceModel.from_seed(small, P, seed).theta0 for seed in range(4)}
    wrong = []

    def draw(seed):
        for _ in range(25):
            if not torch.equal(SubspaceModel.from_seed(small, P, seed).theta0, right[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_seeds_that_would_draw_the_same_are_refused():
    P = make_projection("one_hot", count_parameters(small()), 4)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must lie between 0 and 4294967295"):
            SubspaceModel.from_seed(small, P, seed)
    with pytest.raises(TypeError, match="seed must be an integer"):
        SubspaceModel.from_seed(small, P, 1.5)


class Buffers(nn.Module):
    def __init__(self, buffer=None):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("kept", torch.ones(2) if buffer is None else buffer)


def gone(net):
    net.kept = None


def grown(net):
    net.kept = torch.ones(5)


def of_another_kind(net):
    net.kept = torch.ones(2, dtype=torch.int64)


def added(net):
    net.register_buffer("more", torch.ones(2))


@pytest.mark.parametrize("change", [gone, grown, of_another_kind, added])
def test_buffers_that_could_not_be_loaded_are_not_saved(change, tmp_path):
    model = SubspaceModel.from_seed(Buffers, make_projection("one_hot", 15, 5), 0)
    change(model.net)
    with pytest.raises(ValueError, match="cannot save the buffer '(kept|more)'"):
        model.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_buffer_that_is_not_a_number_comes_back(tmp_path):
    def make():
        return Buffers(torch.tensor([math.nan, 1.0]))

    SubspaceModel.from_seed(make, make_projection("one_hot", 15, 5), 0).save(tmp_path / "file")
    kept = SubspaceModel.load(tmp_path / "file", make).net.kept
    assert kept[0].isnan() and kept[1] == 1


def test_types_that_no_file_holds_are_refused(tmp_path):
    net = Buffers(torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="cannot save numbers of the type torch.complex128"):
        SubspaceModel(net, make_projection("one_hot", 15, 5)).save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


class Gives(nn.Linear):
    def get_extra_state(self):
        return 1


class GivesSparse(Gives):
    def get_extra_state(self):
        return torch.eye(2).to_sparse()

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(("kind", "words"), [(Gives, "no set_extra_state"), (GivesSparse, "the extra state of ''")])
def test_extra_state_that_could_not_be_loaded_is_not_saved(kind, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        SubspaceModel(kind(4, 3), make_projection("one_hot", 15, 5)).save(tmp_path / "file")


@pytest.mark.parametrize("factory", [nn.Linear(4, 3), None, lambda: None])
def test_what_is_no_factory(factory):
    with pytest.raises(TypeError, match="factory must (be a function that makes|make) a network"):
        SubspaceModel.from_seed(factory, make_projection("one_hot", 15, 5), 0)
