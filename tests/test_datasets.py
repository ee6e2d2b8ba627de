"""Data sets: packed files, damaged ones, downloads from a server of the test's own, and the stand-ins."""

import errno
import functools
import gzip
import hashlib
import http.server
import os
import socket
import ssl
import sys
import threading
import urllib.error
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from subspace_lib import Data
from subspace_lib import data as data_room
from subspace_lib.tasks import datasets, downloads, standins
from subspace_lib.tasks.datasets import RealDataMissing, data_folder, load_dataset

SHAPES = {"mnist": (28, 28), "cifar10": (32, 32, 3)}
CHANNELS = {"mnist": 1, "cifar10": 3}
REAL_KNOWN = dict(datasets.KNOWN)


def make_arrays(name, train=50, test=20, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 10, count, dtype=np.uint8)
        arrays[f"{part}_labels"][-1] = 9
    return arrays


def draw_few(name):
    return functools.partial(make_arrays, name, train=30, test=10, seed=9)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every test starts like a fresh process without a network, and with stand-ins that cost nothing."""

    def download(name):
        raise ConnectionError("the cable is out")

    monkeypatch.delenv("SUBSPACE_OFFLINE", raising=False)
    monkeypatch.delenv("SUBSPACE_DATA", raising=False)
    monkeypatch.setattr(downloads, "_download", download)
    for name, known in datasets.KNOWN.items():
        cheap = replace(known, draw=draw_few(name))
        monkeypatch.setitem(datasets.KNOWN, name, cheap)
    downloads._download_once.cache_clear()
    datasets._announce.cache_clear()
    yield
    downloads._download_once.cache_clear()
    datasets._announce.cache_clear()


@pytest.fixture
def server(monkeypatch):
    """Downloads that succeed, and a list of what was asked for."""
    asked = []

    def download(name):
        asked.append(name)
        return make_arrays(name)

    monkeypatch.setattr(downloads, "_download", download)
    return asked


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- Data ----


def pair(count=6, label=2, shape=(1, 4, 4)):
    return torch.zeros(count, *shape), torch.full((count,), label)


def test_data_properties_limit_and_to():
    data = Data(train=pair(6, 2), val=pair(4, 3), test=pair(3, 1))
    assert (data.name, data.source, data.classes, data.shape) == ("custom", "", 4, (1, 4, 4))
    few = data.limit(2, test=1)
    assert [len(part[0]) for part in (few.train, few.val, few.test)] == [2, 4, 1]
    assert [len(part[1]) for part in (few.train, few.val, few.test)] == [2, 4, 1]
    assert len(data.limit(None, val=100).val[1]) == 4
    assert Data(pair(), None).limit(2).val is None
    with pytest.raises(AttributeError):
        data.name = "other"


def test_to_moves_every_tensor(monkeypatch):
    data = Data(train=pair(), val=pair(), test=pair())
    monkeypatch.setattr(data_room, "_check_pair", lambda *_: None)  # the meta device has no values to check
    moved = data.to("meta")
    assert {tensor.device.type for part in (moved.train, moved.val, moved.test) for tensor in part} == {"meta"}
    assert data.train[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("train", "val", "error", "words"),
    [
        (torch.zeros(3), None, TypeError, r"train is a Tensor; pass a tuple of two tensors"),
        (pair()[:1], None, TypeError, r"train is a tuple; pass a tuple of two tensors"),
        ((np.zeros((3, 4)), np.zeros(3)), None, TypeError, r"tuple of two tensors"),
        ((torch.zeros(3, 4), torch.zeros(3).int()), None, TypeError, r"labels are torch.int32, allowed torch.int64"),
        ((torch.zeros(3, 4), torch.zeros(2).long()), None, ValueError, r"\(3, 4\) and labels \(2,\)"),
        ((torch.zeros(3, 4), torch.tensor(3)), None, ValueError, r"labels \(\)"),
        (iter([pair()]), None, TypeError, r"train is a list_iterator, which is empty after one epoch"),
        ((one for one in [pair()]), None, TypeError, r"train is a generator, .*pass a list of batches or a DataLoader"),
        ((torch.zeros(3), torch.zeros(3).long()), None, ValueError, r"shape \(3,\)"),
        (pair(0), None, ValueError, r"train holds 0 images"),
        (pair(label=-1), None, ValueError, r"reach down to -1, allowed 0 or more"),
        (pair(), pair(shape=(3, 4, 4)), ValueError, r"val images have shape \(3, 4, 4\), but train images \(1, 4, 4\)"),
        (pair(), pair(0), ValueError, r"val holds 0 images"),
        (None, pair(), TypeError, r"train is a NoneType"),
    ],
)
def test_data_refuses(train, val, error, words):
    with pytest.raises(error, match=words) as caught:
        Data(train, val)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", [{"train": 0}, {"train": 1, "val": -1}, {"train": 1, "test": 0}])
def test_limit_refuses_less_than_one(counts):
    with pytest.raises(ValueError, match=r"=(0|-1) images, allowed 1 or more"):
        Data(pair(), pair(), pair()).limit(**counts)


# ---- packed files ----


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", list(SHAPES))
def test_packed_file(name, save, tmp_path, capsys):
    arrays = make_arrays(name)
    save(tmp_path / f"{name}.npz", **arrays)
    data = load_dataset(name, tmp_path, require_real=True)
    assert (data.name, data.classes, data.shape) == (name, 10, (CHANNELS[name], 28, 28))
    assert data.source.startswith("real ")
    assert [len(part[1]) for part in (data.train, data.val, data.test)] == [40, 10, 20]
    for images, labels in (data.train, data.val, data.test):
        assert images.dtype == torch.float32 and images.is_contiguous()
        assert labels.dtype == torch.int64 and labels.is_contiguous()
    assert torch.equal(data.test[1], torch.from_numpy(arrays["test_labels"]).long())
    assert capsys.readouterr().err == ""
    assert files_in(tmp_path) == [f"{name}.npz"]


def test_mnist_is_normalised_exactly(tmp_path):
    arrays = make_arrays("mnist")
    np.savez(tmp_path / "mnist.npz", **arrays)
    expected = (arrays["test_images"][:, None].astype(np.float32) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(load_dataset("mnist", tmp_path).test[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_cifar10_is_resized_and_normalised(tmp_path):
    arrays = make_arrays("cifar10")
    arrays["test_images"][0] = (255, 51, 0)
    ramp = np.linspace(0, 255, 32).round().astype(np.uint8)
    arrays["test_images"][1] = ramp[None, :, None]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    images = load_dataset("cifar10", tmp_path).test[0]
    for channel, value in enumerate((1.0, -0.6, -1.0)):
        torch.testing.assert_close(images[0, channel], torch.full((28, 28), value))
    across = images[1, 0]
    assert torch.allclose(across, across[:1].expand(28, 28), atol=1e-5), "the ramp must run along the columns"
    assert bool((across[0].diff() > 0).all())
    assert images.abs().max() <= 1 + 1e-6
    pixels = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2) / 255
    smooth = nn.functional.interpolate(pixels, size=(28, 28), mode="bilinear", antialias=True)
    torch.testing.assert_close(images, smooth * 2 - 1)


def test_split_is_fixed_disjoint_and_whole(tmp_path, monkeypatch):
    arrays = make_arrays("mnist", train=50)
    arrays["train_images"][:] = np.arange(50, dtype=np.uint8)[:, None, None]
    arrays["train_labels"][:] = np.arange(50) % 10
    np.savez(tmp_path / "mnist.npz", **arrays)
    torch.manual_seed(1)
    first = load_dataset("mnist", tmp_path)
    torch.manual_seed(2)
    monkeypatch.setattr(datasets, "CHUNK", 7)
    second = load_dataset("mnist", tmp_path)
    numbers = [(images[:, 0, 0, 0] * 0.3081 + 0.1307) * 255 for images, _ in (first.train, first.val)]
    rows = [part.round().long() for part in numbers]
    assert sorted(torch.cat(rows).tolist()) == list(range(50))
    assert rows[0].tolist() != sorted(rows[0].tolist())
    assert torch.equal(first.train[1], rows[0] % 10) and torch.equal(first.val[1], rows[1] % 10)
    for part in ("train", "val", "test"):
        assert all(map(torch.equal, getattr(first, part), getattr(second, part)))


def test_root_from_argument_environment_checkout_or_working_folder(tmp_path, monkeypatch):
    assert data_folder() == Path(datasets.__file__).parents[2] / "data"
    monkeypatch.setenv("SUBSPACE_DATA", str(tmp_path / "b"))
    assert data_folder() == tmp_path / "b"
    assert data_folder(tmp_path / "a") == data_folder(str(tmp_path / "a")) == tmp_path / "a"
    monkeypatch.delenv("SUBSPACE_DATA")
    monkeypatch.setattr(
        datasets, "__file__", str(tmp_path / "site-packages" / "subspace_lib" / "tasks" / "datasets.py")
    )
    monkeypatch.chdir(tmp_path)
    assert data_folder() == tmp_path / "data"
    monkeypatch.setenv("SUBSPACE_DATA", "~nobody-of-this-name/data")
    with pytest.raises(ValueError, match="'~nobody-of-this-name/data' begins with a home folder that there is not"):
        data_folder()


def test_environment_root_is_used(tmp_path, monkeypatch):
    np.savez(tmp_path / "mnist.npz", **make_arrays("mnist"))
    monkeypatch.setenv("SUBSPACE_DATA", str(tmp_path))
    assert load_dataset("mnist").name == "mnist"


@pytest.mark.parametrize("name", ["MNIST", "", "imagenet", "mnist-standin", None, ["mnist"]])
def test_unknown_name(name, tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set .*allowed 'mnist', 'cifar10'"):
        load_dataset(name, tmp_path)


# ---- damaged and foreign files ----


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)


def save_npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def repack(**changes):
    def write(path):
        with np.load(path) as packed:
            arrays = {key: packed[key] for key in packed}
        for key, change in changes.items():
            changed = change(arrays.pop(key))
            if changed is not None:
                arrays[key] = changed
        np.savez(path, **arrays)

    return write


def zip_of_junk(path):
    with zipfile.ZipFile(path, "w") as packed:
        for key in datasets.KEYS:
            packed.writestr(f"{key}.npy", b"junk")


def fill_a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "0.png").write_bytes(b"an image")


def zip_of_images(path):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("train/0.png", b"an image")


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), ""),
    "text": (lambda path: path.write_text("404 not found"), ""),
    "truncated": (truncate, "BadZipFile"),
    "flipped": (flip_a_byte, "BadZipFile"),
    "half an array": (lambda path: (save_npy(path), path.write_bytes(path.read_bytes()[:-9])), ""),
}
OF_OTHERS = {
    "npy": (save_npy, ""),
    "folder": (fill_a_folder, "IsADirectoryError"),
    "zip of images": (zip_of_images, "it holds train/0.png, and not train_images"),
    "no member": (lambda path: zipfile.ZipFile(path, "w").close(), "it holds nothing, and not"),
    "saved by torch": (lambda path: torch.save({"x": torch.zeros(3)}, path), "and not train_images"),
    "other names": (
        lambda path: np.savez(path, **{f"x_{key}": array for key, array in make_arrays("mnist").items()}),
        "it holds x_train_images, x_train_labels, x_test_images, x_test_labels, and not",
    ),
    "no key": (repack(test_labels=lambda array: None), "and not test_labels"),
    "object images": (
        repack(train_images=lambda array: array.astype(object)),
        "pickled objects, which are never loaded",
    ),
    "object labels": (
        repack(test_labels=lambda array: array.astype(object)),
        "pickled objects, which are never loaded",
    ),
    "no arrays": (zip_of_junk, "reading magic string|and not"),
    "float images": (repack(train_images=lambda array: array / 255), "float64 and uint8, allowed uint8"),
    "long labels": (repack(test_labels=lambda array: array.astype(np.int64)), "test arrays are uint8 and int64"),
    "flat images": (repack(train_images=lambda array: array.reshape(len(array), -1)), r"\(50, 784\) and \(50,\)"),
    "fewer labels": (repack(train_labels=lambda array: array[:-1]), r"\(50, 28, 28\) and \(49,\), allowed"),
    "column labels": (repack(train_labels=lambda array: array[:, None]), r"\(50, 1\), allowed"),
    "label 10": (repack(test_labels=lambda array: array + 1), "test labels reach 10, allowed 0 to 9"),
    "no images": (repack(test_images=lambda a: a[:0], test_labels=lambda a: a[:0]), r"\(0, 28, 28\)"),
    "other data": (lambda path: np.savez(path, **make_arrays("cifar10")), r"\(50, 32, 32, 3\)"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_file_is_named_set_aside_and_fetched_again(damage, tmp_path, server):
    path = tmp_path / "mnist.npz"
    np.savez(path, **make_arrays("mnist", seed=1))
    spoil, words = DAMAGES[damage]
    spoil(path)
    spoiled = path.read_bytes()
    with pytest.warns(UserWarning, match=f"(?s)mnist.npz is not a packed MNIST file .*{words}.*renamed to") as caught:
        data = load_dataset("mnist", tmp_path)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert files_in(tmp_path) == ["mnist.npz", "mnist.npz.damaged"]
    assert (tmp_path / "mnist.npz.damaged").read_bytes() == spoiled
    assert data.name == "mnist" and server == ["mnist"]
    assert torch.equal(data.test[1], torch.from_numpy(make_arrays("mnist")["test_labels"]).long())


@pytest.mark.parametrize("other", list(OF_OTHERS))
def test_what_another_program_wrote_whole_is_left_under_its_name(other, tmp_path, server):
    path = tmp_path / "mnist.npz"
    np.savez(path, **make_arrays("mnist", seed=1))
    make, words = OF_OTHERS[other]
    make(path)
    foreign = path.is_dir() or path.read_bytes()
    with pytest.raises(ValueError, match=f"(?s)mnist.npz is whole, but no packed MNIST file .*{words}.*left as it is"):
        load_dataset("mnist", tmp_path)
    assert files_in(tmp_path) == ["mnist.npz"] and not server
    assert (path.is_dir() or path.read_bytes()) == foreign


def test_absent_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but PyTorch finds no GPU"):
        load_dataset("mnist", tmp_path, device="cuda")


def test_damaged_names_are_numbered_and_nothing_overwritten(tmp_path):
    for content in ("one", "two", "three"):
        (tmp_path / "mnist.npz").write_text(content)
        with pytest.warns(UserWarning, match="renamed to"):
            assert load_dataset("mnist", tmp_path).name == "mnist-standin"
    assert files_in(tmp_path) == [f"mnist.npz.damaged{number}" for number in ("", "2", "3")]
    assert (tmp_path / "mnist.npz.damaged").read_text() == "one"
    assert (tmp_path / "mnist.npz.damaged3").read_text() == "three"


def test_damaged_file_that_cannot_be_renamed(tmp_path, monkeypatch, server):
    (tmp_path / "mnist.npz").write_text("no")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.warns(UserWarning, match="could not be renamed .*Permission denied"):
        assert load_dataset("mnist", tmp_path).name == "mnist"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), MemoryError("full")])
def test_file_that_cannot_be_read_is_left_alone(error, tmp_path, monkeypatch):
    np.savez(tmp_path / "mnist.npz", **make_arrays("mnist"))

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(type(error)):
        load_dataset("mnist", tmp_path)
    assert files_in(tmp_path) == ["mnist.npz"]


def test_no_pickle_is_ever_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    bomb = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "mnist.npz", **{**make_arrays("mnist"), "train_images": bomb})
    with pytest.raises(ValueError, match="pickled objects, which are never loaded"):
        load_dataset("mnist", tmp_path)
    assert not (tmp_path / "exploded").exists()


# ---- downloads ----


@pytest.mark.parametrize("name", list(SHAPES))
def test_download_is_packed_once_and_read_from_then_on(name, tmp_path, server, capsys):
    root = tmp_path / "not" / "yet"
    first = load_dataset(name, root)
    downloads._download_once.cache_clear()
    second = load_dataset(name, root)
    assert server == [name] and files_in(root) == [f"{name}.npz"]
    assert first.name == second.name == name and torch.equal(first.train[0], second.train[0])
    with np.load(root / f"{name}.npz", allow_pickle=False) as packed:
        assert sorted(packed) == sorted(datasets.KEYS)
        assert all(np.array_equal(packed[key], make_arrays(name)[key]) for key in packed)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "failure", [OSError("down"), RuntimeError("bad\nMD5"), ImportError("no torchvision"), EOFError()]
)
def test_failed_download_gives_the_stand_in_and_is_not_tried_again(failure, tmp_path, monkeypatch, capsys):
    asked = []

    def download(name):
        asked.append(name)
        raise failure

    monkeypatch.setattr(downloads, "_download", download)
    for _ in range(3):
        data = load_dataset("mnist", tmp_path)
        assert data.name == "mnist-standin" and data.source == "offline stand-in for MNIST, drawn by subspace_lib"
    assert asked == ["mnist"]
    load_dataset("cifar10", tmp_path)
    assert asked == ["mnist", "cifar10"]
    notice = capsys.readouterr().err
    assert notice.count("THIS IS NOT MNIST") == notice.count("THIS IS NOT CIFAR-10") == 1
    assert " ".join(str(failure).split()) in " ".join(notice.split())
    assert str(tmp_path) in notice and "!" * 60 in notice
    assert files_in(tmp_path) == []


def test_bug_in_the_download_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_download", lambda name: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        load_dataset("mnist", tmp_path)


def test_offline_variable_forbids_the_download(tmp_path, monkeypatch, server, capsys):
    monkeypatch.setenv("SUBSPACE_OFFLINE", "1")
    assert load_dataset("cifar10", tmp_path).name == "cifar10-standin"
    assert server == [] and "SUBSPACE_OFFLINE=1" in capsys.readouterr().err
    monkeypatch.setenv("SUBSPACE_OFFLINE", "true")
    with pytest.raises(ValueError, match="SUBSPACE_OFFLINE is 'true'; allowed is 1"):
        load_dataset("cifar10", tmp_path)
    assert server == []
    monkeypatch.delenv("SUBSPACE_OFFLINE")
    assert load_dataset("cifar10", tmp_path).name == "cifar10"


def test_require_real(tmp_path, capsys):
    with pytest.raises(
        RealDataMissing, match=r"real MNIST is not at .*mnist\.npz \(.*cable is out\); connect"
    ) as caught:
        load_dataset("mnist", tmp_path, require_real=True)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "mnist.npz") in message and "SUBSPACE_DATA" in message
    assert all(key in message for key in datasets.KEYS)
    assert capsys.readouterr().err == "" and files_in(tmp_path) == []


@pytest.mark.parametrize("step", ["replace", "savez"])
def test_failed_write_leaves_nothing_behind(step, tmp_path, monkeypatch, server):
    def write_half(file, **_):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "savez":
        monkeypatch.setattr(np, "savez", write_half)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match=r"could not write .*mnist\.npz .*No space left.*data in memory"):
        data = load_dataset("mnist", tmp_path)
    assert data.name == "mnist" and files_in(tmp_path) == []


def test_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch, server):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", tmp_path)
    assert files_in(tmp_path) == []


def test_unwritable_root_goes_on_in_memory(tmp_path, server):
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"could not write .*file.mnist\.npz .*pass root="):
            assert load_dataset("mnist", tmp_path / "file").name == "mnist"
    assert server == ["mnist"], "what is in memory is not downloaded again"


def test_unwritable_root_without_a_network_is_a_stand_in(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset("mnist", tmp_path / "file").name == "mnist-standin"


# ---- torchvision itself, against a server on this machine ----

torchvision_download = downloads._download


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """MNIST's own loader, with four small files on a server of ours in place of its mirrors."""
    monkeypatch.setattr(downloads, "_download", torchvision_download)
    monkeypatch.setenv("no_proxy", "*")
    arrays, folder = make_arrays("mnist"), tmp_path / "served"
    folder.mkdir()
    resources = []
    for part, stem in (("train", "train"), ("test", "t10k")):
        for kind, ending in (("images", "images-idx3-ubyte.gz"), ("labels", "labels-idx1-ubyte.gz")):
            content = idx(arrays[f"{part}_{kind}"])
            (folder / f"{stem}-{ending}").write_bytes(content)
            resources.append((f"{stem}-{ending}", hashlib.md5(content).hexdigest()))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        loader = downloads._import_torchvision_datasets().MNIST
        monkeypatch.setattr(loader, "mirrors", [f"http://127.0.0.1:{running.server_port}/"])
        monkeypatch.setattr(loader, "resources", resources)
        yield folder
        running.shutdown()


def test_torchvision_downloads_quietly(mirror, tmp_path, capfd):
    before = socket.getdefaulttimeout()
    data = load_dataset("mnist", tmp_path / "root", require_real=True)
    assert files_in(tmp_path / "root") == ["mnist.npz"]
    assert torch.equal(data.test[1], torch.from_numpy(make_arrays("mnist")["test_labels"]).long())
    with np.load(tmp_path / "root" / "mnist.npz") as packed:
        assert np.array_equal(packed["train_images"], make_arrays("mnist")["train_images"])
    assert socket.getdefaulttimeout() == before
    out, err = capfd.readouterr()
    assert out == "" and err == "Downloading MNIST, once ...\n"


def test_download_with_a_wrong_checksum_is_refused(mirror, tmp_path, capsys):
    content = (mirror / "train-images-idx3-ubyte.gz").read_bytes()
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(content[:-1] + b"x")
    before = socket.getdefaulttimeout()
    assert load_dataset("mnist", tmp_path / "root").name == "mnist-standin"
    assert "corrupted" in capsys.readouterr().err
    assert socket.getdefaulttimeout() == before and not (tmp_path / "root").exists()


def test_server_that_never_answers_is_given_up(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loader = downloads._import_torchvision_datasets().MNIST
        monkeypatch.setattr(loader, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        started = downloads.time.monotonic()
        assert load_dataset("mnist", tmp_path / "root").name == "mnist-standin"
        assert downloads.time.monotonic() - started < 5
    assert "no answer from 127.0.0.1" in capsys.readouterr().err


def refuse(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + bytes(7))
    handler.connection.close()


def stall(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "99999")
    handler.end_headers()
    handler.wfile.write(b"x")
    threading.Event().wait(2)


@pytest.mark.parametrize("harm", [refuse, stall])
def test_a_mirror_that_fails_is_followed_by_the_next(harm, mirror, tmp_path, monkeypatch):
    class Harms(http.server.SimpleHTTPRequestHandler):
        do_GET = harm  # and answers when it is only asked

        def log_message(self, *_):
            pass

    monkeypatch.setattr(downloads, "PATIENCE", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Harms, directory=mirror)) as bad:
        bad.handle_error = lambda *_: None
        threading.Thread(target=bad.serve_forever, daemon=True).start()
        loader = downloads._import_torchvision_datasets().MNIST
        monkeypatch.setattr(loader, "mirrors", [f"http://127.0.0.1:{bad.server_port}/", *loader.mirrors])
        assert load_dataset("mnist", tmp_path / "root").name == "mnist"
        bad.shutdown()


@pytest.mark.parametrize(
    "reason", [ssl.SSLCertVerificationError(1, "certificate verify failed"), OSError("Tunnel connection failed: 407")]
)
def test_the_reason_of_a_failed_download_is_told(reason, mirror, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise urllib.error.URLError(reason)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", fail)
    assert load_dataset("mnist", tmp_path / "root").name == "mnist-standin"
    said = " ".join(capsys.readouterr().err.split())
    assert "no answer from 127.0.0.1" in said and str(reason.args[-1]) in said


def test_torchvision_import_survives_missing_operators(monkeypatch):
    """As beside a CPU torch: the first import dies half-way."""
    imported, defined = [], []

    def import_module(name):
        imported.append(name)
        if len(imported) == 1:
            sys.modules["torchvision.half"] = sys
            raise RuntimeError("operator torchvision::nms does not exist")
        assert "torchvision.half" not in sys.modules
        return "the module"

    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(downloads.importlib, "import_module", import_module)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    assert downloads._import_torchvision_datasets() == "the module"
    assert defined == ["torchvision::nms", "torchvision::qnms"]


# ---- stand-ins ----

DRAW = {"mnist": standins.draw_mnist, "cifar10": standins.draw_cifar10}


@functools.cache
def drawn(name):
    return DRAW[name]()


@functools.cache
def standin(name):
    known = replace(datasets.KNOWN[name], draw=DRAW[name])
    return datasets._decode(drawn(name), known, "cpu", f"{name}-standin", "")


@pytest.mark.parametrize("name", list(SHAPES))
def test_load_dataset_draws_these(name, tmp_path, monkeypatch):
    monkeypatch.setattr(standins, "TRAIN_SIZE", 300)
    monkeypatch.setitem(datasets.KNOWN, name, REAL_KNOWN[name])
    monkeypatch.setattr(standins, "TEST_SIZE", 50)
    images, labels = load_dataset(name, tmp_path).test
    assert images.shape == (50, CHANNELS[name], 28, 28)
    assert torch.equal(labels, torch.from_numpy(DRAW[name]()["test_labels"]).long())


@pytest.mark.parametrize("name", list(SHAPES))
def test_stand_ins_fit_where_real_arrays_do(name, tmp_path):
    arrays = drawn(name)
    np.savez(tmp_path / "packed.npz", **arrays)
    assert sorted(datasets._read(tmp_path / "packed.npz", datasets.KNOWN[name])) == sorted(datasets.KEYS)
    data = standin(name)
    assert [len(part[1]) for part in (data.train, data.val, data.test)] == [16_000, 4_000, 4_000]
    assert (data.classes, data.shape) == (10, (CHANNELS[name], 28, 28))
    assert int(data.val[1].bincount().min()) > 300
    images = arrays["train_images"].reshape(20_000, -1)
    assert len(np.unique(images[:, ::7], axis=0)) == 20_000, "no picture is drawn twice"


@pytest.mark.parametrize("name", list(SHAPES))
def test_stand_ins_are_deterministic(name, monkeypatch):
    drawn(name)
    monkeypatch.setattr(standins, "TRAIN_SIZE", 600)
    monkeypatch.setattr(standins, "TEST_SIZE", 150)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = DRAW[name]()
    assert torch.equal(torch.get_rng_state(), state), "drawing must leave the reader's seed alone"
    torch.rand(3)
    second = DRAW[name]()
    assert all(np.array_equal(first[key], second[key]) for key in datasets.KEYS)


def train_and_score(net, data, epochs, lr):
    (images, labels), (val_images, val_labels) = data.train, data.val
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(128):
            optimizer.zero_grad()
            cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return (net(val_images).argmax(1) == val_labels).float().mean().item()


def make_lenet(channels):
    convolutions = [nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, *head)


@pytest.mark.parametrize(("name", "least", "most"), [("mnist", 0.2, 0.85), ("cifar10", 0.15, 0.4)])
def test_a_linear_model_finds_the_stand_ins_hard(name, least, most):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS[name] * 784, 10))
    assert least < train_and_score(linear, standin(name), epochs=5, lr=1e-3) < most


def test_a_dense_network_finds_the_objects_harder_than_lenet_does():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(2352, 200), nn.ReLU(), nn.Linear(200, 10))
    assert 0.3 < train_and_score(dense, standin("cifar10"), epochs=2, lr=1e-3) < 0.5


@pytest.mark.parametrize(("name", "epochs", "least"), [("mnist", 2, 0.95), ("cifar10", 3, 0.55)])
def test_lenet_learns_the_stand_ins(name, epochs, least):
    torch.manual_seed(0)
    assert train_and_score(make_lenet(CHANNELS[name]), standin(name), epochs, lr=2e-3) > least
