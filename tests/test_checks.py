"""Numbers of every kind are taken or refused by name."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from subspace_lib import MLP, count_parameters, split_budget
from subspace_lib.checks import integer, number, positive, seed


@pytest.mark.parametrize("kind", [int, np.int8, np.int64, np.uint16])
def test_whole_numbers_of_any_kind_become_ints(kind):
    assert integer("d", kind(3), 1) == 3
    assert type(integer("d", kind(3), 1, 3)) is int


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float64(2), "2", None, torch.tensor(2)])
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match=f"d must be an integer, got .* of type {type(value).__name__}"):
        integer("d", value, 1)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [(0, 1, None, "d must be at least 1, got 0"), (8, 1, 7, "between 1 and 7, got 8"), (-1, 0, 7, "0 and 7, got -1")],
)
def test_out_of_range(value, low, high, words):
    with pytest.raises(ValueError, match=words):
        integer("d", value, low, high)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int8(2), Fraction(2)])
def test_real_numbers_of_any_kind_become_floats(value):
    assert positive("lr", value) == number("lr", value) == 2
    assert type(positive("lr", value)) is float


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, np.float32(-0.5)])
def test_what_is_not_positive(value):
    with pytest.raises(ValueError, match="lr must be a positive number, got"):
        positive("lr", value)
    with pytest.raises(TypeError, match="lr must be a number, got '1' of type str"):
        positive("lr", "1")


def test_seeds_that_are_taken_draw_different_numbers():
    assert seed("seed", 2**32 - 1) == 2**32 - 1
    for value in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must lie between 0 and 4294967295"):
            seed("seed", value)


def test_the_library_takes_them():
    assert count_parameters(MLP(np.int64(4), np.int32(5), classes=np.uint8(3))) == 43
    assert split_budget([np.int64(10), 20], np.int8(6)) == split_budget([10, 20], 6)
