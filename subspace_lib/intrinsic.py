"""The intrinsic dimension: the smallest d that reaches a given share of the baseline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping


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
        If there is no point, or a number is NaN.
    """
    if not accuracy or any(map(math.isnan, (level, *accuracy.values()))):
        raise ValueError(f"a crossing needs at least one point and no NaN, got {dict(accuracy)} and level {level}")
    points = sorted(accuracy.items())
    if points[0][1] >= level:
        return float(points[0][0])
    for (d_below, below), (d_above, above) in itertools.pairwise(points):
        if above >= level:
            share = (level - below) / (above - below)
            return math.exp((1 - share) * math.log(d_below) + share * math.log(d_above))
    return math.inf
