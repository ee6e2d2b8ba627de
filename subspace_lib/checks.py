"""Numbers that a caller gives: Python's or NumPy's, in range, or refused by name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def says(variable: str, value: str, means: str) -> bool:
    """Whether a variable of the environment has the one value that it may have, which ``means`` explains.

    Raises
    ------
    ValueError
        If it has another.
    """
    found = os.environ.get(variable, "")
    if found not in ("", value):
        raise ValueError(f"{variable} is {found!r}; allowed is {value} ({means}), or leave it unset")
    return found == value


def integer(label: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """``value`` as an int, if it is a whole number of any kind between ``low`` and ``high``.

    Raises
    ------
    TypeError
        If it is not an integer; True and 2.0 are none.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> integer("d", 3, 1)
    3
    >>> integer("d", 0, 1)
    Traceback (most recent call last):
    ValueError: d must be at least 1, got 0
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{label} must be an integer, got {value!r} of type {type(value).__name__}")
    number = int(value)
    if high is not None and not (low or 0) <= number <= high:
        raise ValueError(f"{label} must lie between {low or 0} and {high}, got {number}")
    if low is not None and number < low:
        raise ValueError(f"{label} must be at least {low}, got {number}")
    return number


def number(label: str, value: object) -> float:
    """``value`` as a float, if it is a real number of any kind; infinity and nan are the caller's to judge.

    Raises
    ------
    TypeError
        If it is not a real number.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{label} must be a number, got {value!r} of type {type(value).__name__}")
    return float(value)


def positive(label: str, value: object) -> float:
    """``value`` as a float, if it is a finite number above 0.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not above 0, infinite or nan.
    """
    if not (math.isfinite(found := number(label, value)) and found > 0):
        raise ValueError(f"{label} must be a positive number, got {value!r}")
    return found


def seed(label: str, value: object) -> int:
    """``value`` as an int, if torch's generators tell it from every other: they read the lowest 32 bits alone."""
    try:
        return integer(label, value, 0, 2**32 - 1)
    except ValueError as error:
        why = "torch's generators, which draw here, read the lowest 32 bits alone; a projection's seed has 63"
        raise ValueError(f"{error}: {why}") from None


def function(label: str, value: object) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise TypeError(f"{label} must be a function or a class, got {value!r} of type {type(value).__name__}")


def mapping(label: str, value: object) -> Mapping[Any, Any]:
    """``value``, if it is a dictionary of any kind."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} must be a dictionary, got a {type(value).__name__}")
    return value
