"""Whether one setting is ahead of another: paired runs, their mean difference and its interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """What paired differences say.

    Attributes
    ----------
    mean : float
        The mean difference.
    low, high : float
        Its 95% interval, by Student's t.
    n : int
        How many pairs.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """What the interval says: "ahead", "behind", or "open" where it holds zero."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "open"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f}; {self.n} pairs): {self.verdict}"


def compare(
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    by: Sequence[str] = ("seed",),
    quantity: str = "val_accuracy",
) -> Comparison:
    """How far the runs ``a`` are ahead of the runs ``b``, pair by pair.

    Parameters
    ----------
    a, b : sequence of mapping
        Rows of ``results``.
    by : sequence of str
        The columns whose values make a pair; runs without a partner are left out.
    quantity : str
        What is compared: the column of a number.

    Returns
    -------
    Comparison
        Of the differences a - b.

    Raises
    ------
    ValueError
        If a side has two runs for one pair, a number is missing, or there are fewer than two pairs.

    Examples
    --------
    >>> rows = [{"seed": s, "d": d, "val_accuracy": d / 100 + s / 50} for s in range(3) for d in (5, 9)]
    >>> print(compare([r for r in rows if r["d"] == 9], [r for r in rows if r["d"] == 5]))
    +0.040 (+0.040 to +0.040; 3 pairs): ahead
    """
    first, second = _by_pair(a, by, quantity), _by_pair(b, by, quantity)
    return of_differences([first[pair] - second[pair] for pair in first if pair in second])


def of_differences(differences: Sequence[float]) -> Comparison:
    """What the differences of pairs say, where they do not come from rows.

    Raises
    ------
    ValueError
        If there are fewer than two, or one is not a finite number.

    Examples
    --------
    >>> of_differences([0.01, 0.02, 0.03]).verdict
    'open'
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs two pairs at least, and finite numbers; got the differences {differences}")
    mean = float(values.mean())
    margin = students_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Comparison(mean, mean - margin, mean + margin, len(values))


def sign_test(differences: Sequence[float]) -> float:
    """How probable so one-sided signs, or more so, are where both are equally likely; zeros are left out.

    Examples
    --------
    >>> sign_test([-0.01] * 5)
    0.0625
    """
    above, below = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    tail = sum(math.comb(above + below, k) for k in range(min(above, below) + 1))
    return float(min(1, 2 * tail / 2 ** (above + below)))


@functools.cache
def students_t(freedom: int) -> float:
    """The t between whose negative and itself Student's distribution holds 95%.

    With t = sqrt(freedom) tan(a) the density is proportional to cos(a) to the power of freedom - 1.
    """
    nodes, weights = np.polynomial.legendre.leggauss(100)

    def mass(angle: float) -> float:
        return angle / 2 * float(weights @ np.cos(angle / 2 * (nodes + 1)) ** (freedom - 1))

    low, high, whole = 0.0, math.pi / 2, mass(math.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < CONFIDENCE * whole else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _by_pair(rows: Sequence[Mapping[str, Any]], by: Sequence[str], quantity: str) -> dict[tuple[Any, ...], float]:
    found: dict[tuple[Any, ...], float] = {}
    for row in rows:
        pair = tuple(row[column] for column in by)
        if pair in found:
            named = ", ".join(f"{column} = {value!r}" for column, value in zip(by, pair, strict=True))
            raise ValueError(f"one side has two runs with {named}; choose one setting, or name more columns in `by`")
        if not isinstance(row[quantity], int | float):
            raise ValueError(f"{quantity} of the run {pair} is {row[quantity]!r}, not a number")
        found[pair] = float(row[quantity])
    return found
