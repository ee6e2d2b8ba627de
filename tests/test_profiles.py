"""Profiles and devices."""

import pytest
import torch

from subspace_lib import PROFILES, default_device, get_profile
from subspace_lib.__main__ import main
from subspace_lib.tasks import profiles
from subspace_lib.tasks.profiles import check_device


def test_profiles_grow():
    smoke, quick, full = (get_profile(name) for name in ("smoke", "quick", "full"))
    assert list(PROFILES) == ["smoke", "quick", "full"]
    assert smoke.train_images < quick.train_images and full.train_images is None
    assert smoke.epochs < quick.epochs < full.epochs


def test_unknown_profile():
    with pytest.raises(ValueError, match="unknown profile 'fast'; choose one of: smoke, quick, full"):
        get_profile("fast")


def test_device_can_be_chosen_from_outside(monkeypatch):
    monkeypatch.setenv("SUBSPACE_DEVICE", "cpu")
    assert default_device() == "cpu"
    monkeypatch.delenv("SUBSPACE_DEVICE")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert default_device() == "cuda"
    assert [check_device(device) for device in ("cuda:1", "cpu:0")] == ["cuda:1", "cpu"]
    with pytest.raises(ValueError, match="'cuda:2' was asked for, but the GPUs here are cuda:0 to cuda:1"):
        check_device("cuda:2")


def test_absent_or_unknown_devices_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("SUBSPACE_DEVICE", "cuda")
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but PyTorch finds no GPU here"):
        default_device()
    with pytest.raises(ValueError, match="unknown device None"):
        check_device(None)
    monkeypatch.setenv("SUBSPACE_DEVICE", "abacus")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        default_device()


@pytest.mark.parametrize("device", ["mps", "meta", "xpu", "hpu", "ideep", "vulkan:1"])
def test_what_is_not_here_or_cannot_compute_is_one_line(device, monkeypatch, capsys, tmp_path):
    if device.partition(":")[0] in ("mps", "xpu") and getattr(torch, device).is_available():
        pytest.skip("it is here")
    monkeypatch.setenv("SUBSPACE_DEVICE", device)
    assert main(["sweep", "lr", "--profile", "smoke", "--out", str(tmp_path)]) == 2
    said = f"error: device {device!r} cannot compute in double precision here; use one of: cpu, cuda\n"
    assert capsys.readouterr().err == said


def test_what_no_test_runs_on_is_said_and_used(monkeypatch):
    monkeypatch.setattr(profiles, "TESTED", ("cuda",))
    with pytest.warns(UserWarning, match="the tests of this library do not run on 'cpu'; going on with it"):
        assert check_device("cpu") == "cpu"
