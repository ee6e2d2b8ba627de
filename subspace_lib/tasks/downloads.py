"""The data sets over the network: torchvision fetches and checks them, and gives up soon where there is none."""

import contextlib
import functools
import http.client
import importlib
import io
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

from subspace_lib.checks import says
from subspace_lib.tasks.standins import Arrays

PATIENCE = 10.0  # seconds to wait for a server


def fetch(name: str) -> tuple[Arrays | None, str]:
    """Return the downloaded arrays of a data set, or None and the reason why there are none."""
    if says("SUBSPACE_OFFLINE", "1", "no downloads"):
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
        mirrors = {mirror + loader.resources[0][0]: {"mirrors": [mirror]} for mirror in loader.mirrors}
    else:
        loader = datasets.CIFAR10
        mirrors = {loader.url: {}}
    silent = _silent(list(mirrors))
    if len(silent) < len(mirrors):
        print(f"Downloading {loader.__name__}, once ...", file=sys.stderr, flush=True)
    failures = []
    for address, only in mirrors.items():
        host = urllib.parse.urlsplit(address).netloc
        if address in silent:
            failures.append(f"no answer from {host}: {silent[address]}")
            continue
        try:
            return _download_from(type(loader.__name__, (loader,), only))
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            failures.append(f"{host}: {error or type(error).__name__}")
    raise ConnectionError("; ".join(failures))


def _download_from(loader: Any) -> Arrays:
    """What one of torchvision's loaders fetches."""
    arrays: Arrays = {}
    with tempfile.TemporaryDirectory(prefix="subspace-") as folder, _quiet_and_impatient():
        for part in ("train", "test"):
            loaded = loader(folder, train=part == "train", download=True)
            arrays[f"{part}_images"] = np.asarray(loaded.data, dtype=np.uint8)
            arrays[f"{part}_labels"] = np.asarray(loaded.targets, dtype=np.uint8)
    return arrays


def _silent(addresses: list[str]) -> dict[str, str]:
    """Those whose server says nothing in time, and why; a socket's timeout would not cover name look-ups."""
    silent = dict.fromkeys(addresses, f"nothing in {PATIENCE:g} s")

    def ask(address: str) -> None:
        try:
            with contextlib.suppress(urllib.error.HTTPError):  # a refusal is an answer too
                urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
            del silent[address]
        except (OSError, http.client.HTTPException) as error:
            silent[address] = str(error)

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(silent)


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
