"""Claims of order: pairs, their interval against known answers, and the words that go with it."""

import itertools

import numpy as np
import pytest

from subspace_lib.study.claims import compare, of_differences, sign_test, students_t


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (13, 2.16037), (100, 1.98397), (1000, 1.96234)]
)
def test_students_t_is_that_of_the_tables(freedom, t):
    assert students_t(freedom) == pytest.approx(t, rel=1e-5)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(0.3, 2.0, size=(4000, 4))
    held = [one.low <= 0.3 <= one.high for one in map(of_differences, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def rows(values, **more):
    return [{"seed": seed, "val_accuracy": value} | more for seed, value in enumerate(values)]


def test_runs_are_compared_pair_by_pair_whatever_their_order():
    a, b = rows((0.5, 0.7, 0.9)), rows((0.4, 0.61, 0.8))
    found = compare(a[::-1], [*b, {"seed": 9, "val_accuracy": 0.0}])
    assert (found.n, found.verdict) == (3, "ahead")
    differences = np.array([0.1, 0.09, 0.1])
    assert found.mean == pytest.approx(differences.mean())
    assert found.high - found.mean == pytest.approx(4.30265 * differences.std(ddof=1) / 3**0.5, rel=1e-4)
    other = compare(b, a)
    assert (other.verdict, other.mean, other.low) == ("behind", -found.mean, -found.high)
    assert compare(rows((0.5, 0.4)), rows((0.4, 0.5))).verdict == "open"
    assert str(found) == "+0.097 (+0.082 to +0.111; 3 pairs): ahead"


def test_pairs_may_be_of_several_columns_and_never_of_two_runs():
    a = rows((0.5, 0.6), d=1) + rows((0.7, 0.9), d=2)
    b = rows((0.4, 0.5), d=1) + rows((0.6, 0.7), d=2)
    assert compare(a, b, by=("seed", "d")).n == 4
    with pytest.raises(ValueError, match="two runs with seed = 0; choose one setting"):
        compare(a, b)


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, float("nan")], [0.1, float("inf")]])
def test_too_few_pairs_and_what_is_no_number_are_refused(differences):
    with pytest.raises(ValueError, match="two pairs at least"):
        of_differences(differences)


def test_a_missing_number_is_named():
    with pytest.raises(ValueError, match=r"val_loss of the run \(0,\) is '', not a number"):
        compare([{"seed": 0, "val_loss": ""}], [{"seed": 0, "val_loss": 1.0}], quantity="val_loss")


def test_the_sign_test_counts_what_is_as_one_sided():
    for n, lower in ((14, 14), (9, 8), (15, 2), (6, 3)):
        signs = list(itertools.product((-1, 1), repeat=n))
        extreme = [abs(sum(each)) >= abs(n - 2 * lower) for each in signs]
        assert sign_test([-1.0] * lower + [1.0] * (n - lower)) == pytest.approx(np.mean(extreme))
    assert sign_test([0.0, 0.0]) == 1
