"""The intrinsic dimension, on curves whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subspace_lib import SubspaceModel, ToyProblem, make_projection
from subspace_lib.intrinsic import crossing, increasing, intrinsic_dimension, search_intrinsic_dimension


def curve_through(d90, seeds=5, spread=0.0):
    """Accuracy .2 log10(d) + c, so that .9 times a baseline of 1 is crossed at d90; seeds move it up and down."""
    shifts = np.linspace(-spread, spread, seeds) if seeds > 1 else [0.0]
    return {d: [0.9 + 0.2 * math.log10(d / d90) + shift for shift in shifts] for d in (10, 30, 100, 300, 1000)}


def test_a_line_in_log_d_is_crossed_where_it_was_put():
    estimate = intrinsic_dimension(curve_through(77.0), [1.0] * 5)
    assert (estimate.d90, estimate.low, estimate.high) == pytest.approx((77, 77, 77))
    assert (estimate.kind, estimate.bracketed, estimate.level) == ("interval", True, pytest.approx(0.9))


def test_few_seeds_give_a_range_of_the_single_seeds():
    estimate = intrinsic_dimension(curve_through(77.0, seeds=3, spread=0.02), 1.0)
    assert estimate.kind == "range"
    assert estimate.d90 == pytest.approx(77)
    assert (estimate.low, estimate.high) == pytest.approx((77 * 10**-0.1, 77 * 10**0.1))


def test_the_interval_covers_the_truth_and_includes_the_baselines_spread():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        noisy = {d: list(row + generator.normal(0, 0.01, 8)) for d, row in curve_through(77.0, 8).items()}
        estimate = intrinsic_dimension(noisy, list(1 + generator.normal(0, 0.01, 8)))
        covered += estimate.low <= 77 <= estimate.high
    assert covered >= 48
    still = intrinsic_dimension(noisy, 1.0)
    moving = intrinsic_dimension(noisy, list(1 + generator.normal(0, 0.05, 8)))
    assert moving.high / moving.low > still.high / still.low


def test_the_two_baselines_give_two_dimensions():
    curve = curve_through(100.0)
    assert intrinsic_dimension(curve, [1.0] * 5).d90 == pytest.approx(100)
    assert intrinsic_dimension(curve, 0.95).d90 == pytest.approx(100 * 10 ** (-0.9 * 0.05 / 0.2))


def test_ends_of_the_grid_are_said_to_be_ends():
    low = intrinsic_dimension({10: [0.95], 100: [0.97]}, 1.0)
    high = intrinsic_dimension({10: [0.1], 100: [0.2]}, 1.0)
    assert (low.d90, low.bracketed) == (10, False)
    assert (high.d90, high.bracketed) == (math.inf, False)


def test_the_increasing_fit_pools_what_falls():
    fitted = increasing({1: 0.1, 2: 0.5, 3: 0.3, 4: 0.9}, {1: 1, 2: 1, 3: 3, 4: 1})
    assert fitted == pytest.approx({1: 0.1, 2: 0.35, 3: 0.35, 4: 0.9})
    generator = np.random.default_rng(1)
    means = dict(enumerate(generator.normal(size=30)))
    fitted = increasing(means, dict.fromkeys(means, 1.0))
    running = [  # the min-max formula
        max(min(np.mean([means[k] for k in range(a, b + 1)]) for b in range(i, 30)) for a in range(i + 1))
        for i in range(30)
    ]
    assert list(fitted.values()) == pytest.approx(running)


def test_the_toy_problem_has_intrinsic_dimension_ten():
    def performance(d, seed):
        torch.manual_seed(seed)
        toy = ToyProblem(D=1000, blocks=10)
        P = make_projection("dense", 1000, d, seed + 1000)
        # exact training: the loss is a square of a linear map of z, so least squares finds its minimum
        sums = torch.block_diag(*[torch.ones(1, 100)] * 10).double()
        A, b = sums @ P.to_dense().double(), toy.targets.double() - sums @ toy.theta.detach().double()
        z = torch.linalg.lstsq(A, b[:, None], driver="gelsd").solution
        return float(torch.exp(-(A @ z - b[:, None]).square().sum()))

    found = [
        search_intrinsic_dimension(lambda d, _, seed=seed: performance(d, seed), 1.0, 3, 1000, seeds=1, tolerance=1e-6)
        for seed in range(10)
    ]
    tried = [min(d for d, value in estimate.curve.items() if value >= 0.9) for estimate in found]
    assert np.median(tried) == 10


def test_training_the_toy_problem_agrees_on_both_sides_of_ten():
    def trained(d, seed):
        torch.manual_seed(seed)
        model = SubspaceModel(ToyProblem(1000, 10), make_projection("dense", 1000, d, seed + 1000))
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            return loss

        optimizer.step(closure)
        return math.exp(-model().item())

    assert (
        np.median([trained(8, seed) for seed in range(10)]) < 0.9 < np.median([trained(14, seed) for seed in range(10)])
    )


def test_the_search_finds_it_with_few_runs_from_either_side():
    for start in (2, 77, 3000):
        asked = set()

        def performance(d, seed, asked=asked):
            asked.add(d)
            return 0.9 + 0.2 * math.log10(d / 77.4) + 0.001 * (seed - 1)

        estimate = search_intrinsic_dimension(performance, 1.0, start, 5000, seeds=3, tolerance=0.05)
        assert estimate.d90 == pytest.approx(77.4, rel=0.01)
        assert estimate.bracketed
        assert len(asked) <= 12
    assert not search_intrinsic_dimension(lambda d, seed: 0.1, 1.0, 5, 100, seeds=1).bracketed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intrinsic_dimension({}, 1.0), "needs a baseline and at least one run"),
        (lambda: intrinsic_dimension({3: []}, 1.0), "needs a baseline and at least one run"),
        (lambda: intrinsic_dimension({3: 1.0}, []), "needs a baseline and at least one run"),
        (lambda: intrinsic_dimension({3: [1.0, math.nan]}, 1.0), "the performance at d = 3 is nan, allowed finite"),
        (lambda: intrinsic_dimension({3: [math.inf]}, 1.0), "the performance at d = 3 is inf"),
        (lambda: intrinsic_dimension({3: [None, 1.0]}, 1.0), "the performance at d = 3 is None"),
        (lambda: intrinsic_dimension({3: None}, 1.0), "the performance at d = 3 is None"),
        (lambda: intrinsic_dimension({3: {0: 0.5}}, 1.0), "the performance at d = 3 is a dict, allowed a sequence"),
        (lambda: intrinsic_dimension({3: {0.5, 0.6}}, 1.0), "the performance at d = 3 is a set, allowed a sequence"),
        (lambda: intrinsic_dimension({3: 0.5}, {0: 1.0}), "the baseline is a dict"),
        (lambda: intrinsic_dimension([(3, 0.5)], 1.0), "curve must be a dictionary, got a list"),
        (lambda: intrinsic_dimension({3: 0.5, "4": 0.5}, 1.0), "d must be an integer, got '4'"),
        (lambda: intrinsic_dimension({3: "0.9"}, 1.0), "the performance at d = 3 is '0.9'"),
        (lambda: intrinsic_dimension({3: 1.0}, [1.0, None]), "the baseline is None"),
        (lambda: intrinsic_dimension({3: 1.0}, math.inf), "the baseline is inf"),
        (lambda: intrinsic_dimension({3: 1.0}, [1.0, 0.0]), "the baseline is 0, allowed numbers above 0"),
        (lambda: intrinsic_dimension({3: -1.0}, -0.3), "such as accuracy, and not a loss"),
        (lambda: intrinsic_dimension({0: 1.0}, 1.0), "d must be at least 1, got 0"),
        (lambda: intrinsic_dimension({-3: 1.0}, 1.0), "d must be at least 1, got -3"),
        (lambda: intrinsic_dimension({2.5: 1.0}, 1.0), "d must be an integer, got 2.5"),
        (lambda: intrinsic_dimension({"3": 1.0}, 1.0), "d must be an integer, got '3'"),
        (lambda: search_intrinsic_dimension(lambda d, seed: math.nan, 1.0, 2, 5), r"performance\(2, 0\) is nan"),
        (lambda: search_intrinsic_dimension(lambda d, seed: None, 1.0, 2, 5), r"performance\(2, 0\) is None"),
        (lambda: search_intrinsic_dimension(min, -1.0, 2, 5), "the baseline is -1"),
        (lambda: crossing({0: 1.0, 2: 3.0}, 2.0), "d above 0"),
        (lambda: crossing({1: -math.inf, 2: 3.0}, 2.0), "finite numbers"),
        (lambda: intrinsic_dimension({3: [1.0]}, 1.0, share=0), "share must be a positive number"),
        (lambda: search_intrinsic_dimension(min, 1.0, 9, 5), "start must lie between 1 and 5, got 9"),
        (lambda: search_intrinsic_dimension(min, 1.0, 1, 5, seeds=0), "seeds must be at least 1, got 0"),
        (lambda: search_intrinsic_dimension(min, 1.0, 1, 5, tolerance=0), "tolerance must be a positive number, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_range_holds_the_estimate_itself():
    """Making the mean increasing moves its crossing past those of both seeds."""
    curve = {1: [0.0, 0.21], 10: [0.46, 0.26], 100: [0.92, 0.55], 1000: [0.73, 0.88], 10_000: [1.0, 1.0]}
    found = intrinsic_dimension(curve, [0.9, 1.0])
    alone = [intrinsic_dimension({d: [row[i]] for d, row in curve.items()}, [[0.9, 1.0][i]]).d90 for i in (0, 1)]
    assert max(alone) < found.d90
    assert (found.low, found.high, found.kind) == (min(alone), found.d90, "range")


def test_one_number_is_the_performance_of_one_seed():
    single = intrinsic_dimension({10: 0.5, np.int64(100): np.float32(0.9), 1000: 1.0}, np.float64(1.0))
    assert single == intrinsic_dimension({10: [0.5], 100: [np.float32(0.9)], 1000: [1.0]}, 1.0)
    arrays = {d: np.array(row) for d, row in curve_through(77.0).items()}
    tensors = {d: torch.tensor(row, dtype=torch.float64) for d, row in curve_through(77.0).items()}
    wanted = intrinsic_dimension(curve_through(77.0), [1.0] * 5)
    assert intrinsic_dimension(arrays, np.ones(5)) == intrinsic_dimension(tensors, torch.ones(5)) == wanted


def test_a_negative_performance_is_a_performance():
    """A reward, say; the line through -1 at d = 1 and 1 at d = 100 is .9 at 100 ** .95."""
    assert intrinsic_dimension({1: [-1.0], 100: [1.0]}, 1.0).d90 == pytest.approx(100**0.95)


def test_an_estimate_says_what_it_is():
    assert repr(intrinsic_dimension(curve_through(77.0), [1.0] * 5)) == "d_int90 = 77 (interval 77 to 77)"
    never = intrinsic_dimension({10: [0.1, 0.1], 100: [0.2, 0.95]}, 1.0)
    assert str(never) == "d_int90 not reached by d = 100 (range 87.33 to beyond 100)"
    assert repr(intrinsic_dimension({10: 0.95}, 1.0, share=0.5)) == "d_int50 reached by d = 10 already (range 10 to 10)"


performances = st.floats(-1, 2, allow_nan=False)


@given(
    st.dictionaries(st.integers(1, 10**6), st.lists(performances, min_size=1, max_size=6), min_size=1, max_size=6),
    st.lists(st.floats(1e-3, 2), min_size=1, max_size=6),
)
def test_never_nan_and_never_outside_its_interval(curve, baseline):
    estimate = intrinsic_dimension(curve, baseline)
    assert min(curve) <= estimate.low <= estimate.high
    assert min(curve) <= estimate.d90
    assert estimate.d90 <= max(curve) * (1 + 1e-9) or estimate.d90 == math.inf
    assert (estimate.d90 == math.inf) == (max(estimate.curve.values()) < estimate.level)
    assert ("not reached" in repr(estimate)) == (estimate.d90 == math.inf)


@given(st.integers(1, 3000), st.integers(1, 2000), st.floats(0.01, 1))
def test_the_search_tests_both_ends_of_what_it_gives(truth, start, tolerance):
    """Performance jumps at the truth: the search ends between the last d without and the first d with it."""
    largest = 2000
    estimate = search_intrinsic_dimension(
        lambda d, seed: float(d >= truth), 1.0, start, largest, seeds=1, tolerance=tolerance
    )
    tried = sorted(estimate.curve)
    if truth > largest:
        assert tried[-1] == largest and estimate.d90 == math.inf and not estimate.bracketed
    elif truth == 1:
        assert (tried[0], estimate.d90, estimate.bracketed) == (1, 1, False)
        assert len(tried) == 1 + math.floor(math.log2(start)), "nothing is left to halve"
    else:
        below, above = max(d for d in tried if d < truth), min(d for d in tried if d >= truth)
        assert above - below == 1 or above <= (1 + tolerance) * below
        assert below <= estimate.d90 <= above and estimate.bracketed
