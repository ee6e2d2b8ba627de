"""The intrinsic dimension: the smallest d that reaches a given share of the baseline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from subspace_lib.checks import function, integer, mapping, positive
from subspace_lib.checks import seed as checked_seed

SEEDS_OF_AN_INTERVAL = 5
RESAMPLES = 2000


@dataclass(frozen=True, repr=False)
class Estimate:
    """An intrinsic dimension and how well it is known; printed, it says so in words.

    Attributes
    ----------
    d90 : float
        Where the isotonic fit of the curve reaches the level; infinity, if it does not reach it by the largest d tried.
    low, high : float
        Its 95% bootstrap interval over seeds, the baseline's included (from five seeds it is too short for its name:
        for the mean of five normal numbers it covers about 84%); or the smallest and largest of d90 and of the single
        seeds, where there are fewer than five.
    kind : str
        "interval" or "range", as the two above.
    baseline, level : float
        Mean of the baseline, and the share of it that was asked for.
    bracketed : bool
        Whether the curve lies on both sides of the level; if not, d90 is an end of the grid, or infinity.
    curve : dict of int to float
        The isotonic fit: the mean at each d, made increasing.
    """

    d90: float
    low: float
    high: float
    kind: str
    baseline: float
    level: float
    bracketed: bool
    curve: dict[int, float]

    def __repr__(self) -> str:
        """For instance: d_int90 = 77.3 (interval 70.1 to 84.2), or d_int90 not reached by d = 1000."""
        smallest, largest = min(self.curve), max(self.curve)
        low, high = (f"beyond {largest}" if d == math.inf else f"{d:.4g}" for d in (self.low, self.high))
        if self.d90 == math.inf:
            found = f"not reached by d = {largest}"
        elif not self.bracketed:
            found = f"reached by d = {smallest} already"
        else:
            found = f"= {self.d90:.4g}"
        return f"d_int{100 * self.level / self.baseline:.4g} {found} ({self.kind} {low} to {high})"


def intrinsic_dimension(
    curve: Mapping[int, Sequence[float] | float], baseline: Sequence[float] | float, share: float = 0.9, seed: int = 0
) -> Estimate:
    """The smallest d that reaches a share of the baseline, from runs over several d and seeds.

    Parameters
    ----------
    curve : mapping of int to sequence of float, or to float
        Performance at each d, one number a seed, all in the same order of seeds; more is better. A single number is
        that of one seed.
    baseline : sequence of float, or float
        Performance of direct training with each of these seeds: the network's own baseline, above 0. A single number
        is a fixed one, without spread.
    share : float
        0.9 for d_int90.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If there is no run, d is below 1, a performance is missing or not finite, or baseline or share not positive.
    TypeError
        If d is not a whole number.

    Examples
    --------
    >>> intrinsic_dimension({10: [0.5, 0.6], 100: [0.9, 0.8], 1000: [0.96, 0.98]}, [1.0, 1.0])
    d_int90 = 261 (range 100 to 359.4)
    >>> intrinsic_dimension({10: 0.5, 100: 0.7}, 1.0)
    d_int90 not reached by d = 100 (range beyond 100 to beyond 100)

    References
    ----------
    Li et al. (2018), *Measuring the Intrinsic Dimension of Objective Landscapes*, section 2 (d_int90).
    """
    own = _baseline(baseline)
    given = {integer("d", d, 1): row for d, row in mapping("curve", curve).items()}
    values = {d: _performances(f"the performance at d = {d}", given[d]) for d in sorted(given)}
    if not values:
        raise ValueError("an intrinsic dimension needs a baseline and at least one run at each d; the curve has no d")
    share, seed = positive("share", share), checked_seed("seed", seed)

    def crossing_of(chosen: Sequence[int]) -> tuple[float, dict[int, float]]:
        means = {d: float(np.mean([row[i % len(row)] for i in chosen])) for d, row in values.items()}
        fitted = increasing(means, {d: len(row) for d, row in values.items()})
        return crossing(fitted, share * float(np.mean([own[i % len(own)] for i in chosen]))), fitted

    means = {d: float(np.mean(row)) for d, row in values.items()}
    fitted = increasing(means, {d: len(row) for d, row in values.items()})
    level = share * float(np.mean(own))
    d90 = crossing(fitted, level)
    ends = list(fitted.values())
    around = [d for d in values if d <= d90][-1:] + [d for d in values if d >= d90][:1]
    seeds = min([len(values[d]) for d in around] + ([len(own)] if len(own) > 1 else []))
    if seeds >= SEEDS_OF_AN_INTERVAL:
        draws = np.random.default_rng(seed).integers(seeds, size=(RESAMPLES, seeds))
        found = [crossing_of(draw)[0] for draw in draws.tolist()]
        low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    else:
        found = [d90, *(crossing_of([i])[0] for i in range(seeds))]
        low, high = min(found), max(found)
    kind = "interval" if seeds >= SEEDS_OF_AN_INTERVAL else "range"
    bracketed = ends[0] < level <= ends[-1]
    return Estimate(d90, float(low), float(high), kind, float(np.mean(own)), level, bracketed, fitted)


def search_intrinsic_dimension(
    performance: Callable[[int, int], float],
    baseline: Sequence[float] | float,
    start: int,
    largest: int,
    seeds: int = 5,
    share: float = 0.9,
    tolerance: float = 0.1,
) -> Estimate:
    """Find an intrinsic dimension with few runs: bracket it by doubling, then halve the bracket on log d.

    Parameters
    ----------
    performance : callable
        ``performance(d, seed)``: trains once and gives the performance, a finite number.
    baseline, share
        As for ``intrinsic_dimension``.
    start, largest : int
        Where the search begins, and the largest d that it may try: at most D.
    seeds : int
        Runs at each d, with seeds 0, 1, ...
    tolerance : float
        The search ends when the bracket's ends differ by less than this share.

    Returns
    -------
    Estimate
        With ``bracketed`` False, if even ``largest`` falls short of the level, or d = 1 reaches it.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or a performance is missing or not finite.
    """
    function("performance", performance)
    largest, seeds = integer("largest", largest, 1), integer("seeds", seeds, 1)
    start, tolerance = integer("start", start, 1, largest), positive("tolerance", tolerance)
    own = _baseline(baseline)
    level = positive("share", share) * float(np.mean(own))
    curve: dict[int, list[float]] = {}

    def reaches(d: int) -> bool:
        if d not in curve:
            curve[d] = []
            for seed in range(seeds):
                curve[d] += _performances(f"performance({d}, {seed})", performance(d, seed))
                if len(curve[d]) != seed + 1:
                    raise ValueError(f"performance({d}, {seed}) gives {curve[d][seed:]}, allowed one number")
        return float(np.mean(curve[d])) >= level

    below, above = start, start
    while not reaches(above) and above < largest:
        below, above = above, min(2 * above, largest)
    while reaches(below) and below > 1:
        below, above = max(1, below // 2), below
    while above - below > 1 and above > (1 + tolerance) * below and reaches(above) and not reaches(below):
        middle = min(max(round(math.sqrt(below * above)), below + 1), above - 1)
        below, above = (below, middle) if reaches(middle) else (middle, above)
    return intrinsic_dimension(curve, own, share)


def _performances(what: str, given: Any) -> list[float]:
    """One number or several, as a list of finite floats."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, Mapping | Set):
        raise ValueError(
            f"{what} is a {type(given).__name__}, allowed a sequence: one number a seed, in order of seeds"
        )
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{what} is {value!r}, allowed finite numbers; leave such runs out, or count them as 0")
    if not values:
        raise ValueError(f"an intrinsic dimension needs a baseline and at least one run at each d; {what} has none")
    return [float(value) for value in values]


def _baseline(given: Any) -> list[float]:
    """The performances of direct training, of which a share can be asked for."""
    own = _performances("the baseline", given)
    if min(own) <= 0:
        raise ValueError(
            f"the baseline is {min(own):g}, allowed numbers above 0: a share of it is asked for; "
            "give a performance of which more is better, such as accuracy, and not a loss"
        )
    return own


def increasing(means: Mapping[int, float], weights: Mapping[int, float]) -> dict[int, float]:
    """The increasing curve nearest to the means in weighted squares: neighbours that fall are pooled."""
    pools: list[tuple[float, float, list[int]]] = []
    for d in sorted(means):
        pools.append((means[d], weights[d], [d]))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m, left), (b, n, right) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n, left + right)]
    return {d: mean for mean, _, members in pools for d in members}


def crossing(accuracy: Mapping[int, float], level: float) -> float:
    """The d at which a curve of accuracy over d first reaches ``level``, interpolated on log d.

    Parameters
    ----------
    accuracy : mapping of int to float
        Accuracy at each d.
    level : float
        For d_int90: 0.9 times the accuracy of direct training.

    Returns
    -------
    float
        The smallest d tried, if the curve starts above the level; infinity, if it never reaches it.

    Raises
    ------
    ValueError
        If there is no point, a d is not above 0, or a number is infinite or NaN.
    """
    if not accuracy or min(accuracy) <= 0 or not all(map(math.isfinite, (level, *accuracy.values()))):
        raise ValueError(
            f"a crossing needs at least one point, d above 0 and finite numbers, got {dict(accuracy)} and level {level}"
        )
    points = sorted(accuracy.items())
    if points[0][1] >= level:
        return float(points[0][0])
    for (d_below, below), (d_above, above) in itertools.pairwise(points):
        if above >= level:
            share = (level - below) / (above - below)
            return math.exp((1 - share) * math.log(d_below) + share * math.log(d_above))
    return math.inf
