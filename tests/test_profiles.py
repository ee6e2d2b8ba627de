"""Profiles and devices."""

import pytest

from subspace_lib import PROFILES, default_device, get_profile


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
    assert default_device() == "cuda"


def test_absent_or_unknown_devices_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("SUBSPACE_DEVICE", "cuda")
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but PyTorch finds no GPU here"):
        default_device()
    monkeypatch.setenv("SUBSPACE_DEVICE", "abacus")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        default_device()
