"""The data sets over the network: torchvision fetches and checks them, and gives up soon where there is none."""

import contextlib
import functools
import http.client
import importlib
import io
import os
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from subspace_lib.tasks.standins import Arrays

PATIENCE = 10.0  # seconds to wait for a server


def fetch(name: str) -> tuple[Arrays | None, str]:
    """Return the downloaded arrays of a data set, or None and the reason why there are none."""
    if os.environ.get("SUBSPACE_OFFLINE") == "1":
        return None, "SUBSPACE_OFFLINE=1 forbids downloads"
    return _download_once(name)


@functools.cache
def _download_once(name: str) -> tuple[Arrays | None, str]:
    try:
        return _download(name), ""
    except (OSError, RuntimeError, ImportError, EOFError, http.client.HTTPException) as error:
        return None, f"download failed: {' '.join(str(error).split()) or type(error).__name__}"


def _download(name: str) -> Arrays:
    """Fetch a data set with torchvision, which checks the MD5 sums."""
    datasets = _import_torchvision_datasets()
    if name == "mnist":
        loader = datasets.MNIST
        addresses = [mirror + loader.resources[0][0] for mirror in loader.mirrors]
    else:
        loader = datasets.CIFAR10
        addresses = [loader.url]
    if not _any_answers(addresses):
        hosts = " or ".join(urllib.parse.urlsplit(address).netloc for address in addresses)
        raise ConnectionError(f"no answer from {hosts}")
    print(f"Downloading {loader.__name__}, once ...", file=sys.stderr, flush=True)
    arrays: Arrays = {}
    with tempfile.TemporaryDirectory(prefix="subspace-") as folder, _quiet_and_impatient():
        for part in ("train", "test"):
            loaded = loader(folder, train=part == "train", download=True)
            arrays[f"{part}_images"] = np.asarray(loaded.data, dtype=np.uint8)
            arrays[f"{part}_labels"] = np.asarray(loaded.targets, dtype=np.uint8)
    return arrays


def _any_answers(addresses: list[str]) -> bool:
    """Whether a server says anything at all in time; a socket's timeout would not cover name look-ups."""
    answers: list[str] = []

    def ask(address: str) -> None:
        request = urllib.request.Request(address, method="HEAD")
        with contextlib.suppress(OSError, http.client.HTTPException):
            with contextlib.suppress(urllib.error.HTTPError):  # a refusal is an answer too
                urllib.request.urlopen(request, timeout=PATIENCE).close()
            answers.append(address)

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while not answers and any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(answers)


@contextlib.contextmanager
def _quiet_and_impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _import_torchvision_datasets() -> Any:
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError:
        # torchvision's wheel is a CUDA build: beside a CPU torch two operators lack their schemas.
        for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        return importlib.import_module("torchvision.datasets")
