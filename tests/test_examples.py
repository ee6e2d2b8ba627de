"""The examples in the library's docstrings run, and give what they show."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import subspace_lib
from subspace_lib import projections

WINGS = ("tasks", "study", "press", "__main__")
ROOMS = [
    found.name
    for found in pkgutil.walk_packages(subspace_lib.__path__, "subspace_lib.")
    if found.name.split(".")[1] not in WINGS and not found.name.endswith("triton_kernels")  # triton may not be there
]
KNOWN = {name: getattr(subspace_lib, name) for name in subspace_lib.__all__} | {"torch": torch, "nn": torch.nn}
"""What an example need not import: torch, nn, and what `subspace_lib` hands out."""
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = [
    example
    for room in ROOMS
    for example in FINDER.find(importlib.import_module(room), extraglobs=KNOWN)
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("subspace_lib."))
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not failed, "".join(said)


@pytest.mark.parametrize("name", projections.__all__)
def test_every_public_thing_of_the_projections_has_an_example(name):
    public = getattr(projections, name)
    assert name == "PROJECTIONS" or ">>>" in public.__doc__
