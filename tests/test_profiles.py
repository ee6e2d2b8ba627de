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
