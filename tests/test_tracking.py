"""Weights & Biases, offline: what it keeps is what happened."""

import re
import sys
import time

import pytest
import torch

from subspace_lib import MLP, Data, DivergedError, fit
from subspace_lib.study.tracking import WandbLogger


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 28, 28, generator=generator), torch.arange(64) % 10
    return Data(train=(images, labels), val=(images[:20], labels[:20]))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    return {"project": "test", "mode": "offline", "dir": str(tmp_path)}


def test_an_offline_run_holds_every_epoch(data, offline, tmp_path, monkeypatch):
    logged = []
    torch.manual_seed(0)
    with WandbLogger(**offline, config={"d": 64}) as logger:
        send = logger.run.log
        monkeypatch.setattr(
            logger.run, "log", lambda numbers, step: (logged.append((step, numbers)), send(numbers, step))
        )
        history = fit(MLP(784, 4), data, epochs=3, lr=0.01, batch_size=32, on_epoch=logger)
    assert [step for step, _ in logged] == [1, 2, 3]
    assert [numbers["train_loss"] for _, numbers in logged] == history.train_loss
    assert [numbers["val_accuracy"] for _, numbers in logged] == history.val_accuracy[1:]
    [kept] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for _ in range(600):  # another process writes the file, and may be late
        content = kept.read_bytes()
        numbers = {float(text) for text in re.findall(rb"\d+\.\d+(?:e-?\d+)?", content)}
        if set(history.train_loss) <= numbers:
            break
        time.sleep(0.1)
    assert b"train_loss" in content and b"val_accuracy" in content
    assert set(history.train_loss[:-1]) <= numbers


def test_a_run_that_fails_is_marked_and_the_error_passes(data, offline):
    with pytest.raises(DivergedError), WandbLogger(**offline) as logger:
        finish = logger.run.finish
        codes = []
        logger.run.finish = lambda exit_code: (codes.append(exit_code), finish(exit_code=exit_code))
        fit(MLP(784, 4), data, epochs=3, lr=1e30, batch_size=32, on_epoch=logger)
    assert codes == [1]


def test_without_wandb_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        WandbLogger()
