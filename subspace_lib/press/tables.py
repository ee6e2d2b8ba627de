"""Tables of the book: real ones, with headings that a screen reader finds, wherever a notebook is shown."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

NUMBER = re.compile(r"[+-]?[\d,.]+(e[+-]\d+)?%?|[+-]?(inf|nan)")
SIGNED_ZERO = re.compile(r"(?<![\w.])[+-](?=0(\.0+)?(?!\.?\d|e))")  # -0.000, within words too
SIDE = 'style="text-align: {}"'
WHOLE = 'style="text-align: {}; white-space: nowrap"'
"""A heading breaks where a line is too short for it, a number or an interval does not."""


class Table:
    """Rows as a table: a heading for each column, and the first cell of a row as its heading.

    A column of numbers stands on the right, whether they come as numbers or written out; a zero has no sign.

    Parameters
    ----------
    rows : sequence of mapping
        One mapping a row, from the heading of a column to its cell. A row may leave cells out.
    caption : str
        What the table shows and where its numbers come from.
    formats : mapping of str to str, optional
        How the numbers of a column are written, as in ``format``; elsewhere whole numbers get commas, and others four
        significant digits.

    Raises
    ------
    ValueError
        If there is no row, or a format is given for a column that no row has.

    Examples
    --------
    >>> rows = [{"d": 50, "accuracy": 0.8126}, {"d": 1000, "accuracy": 0.9512}]
    >>> print(Table(rows, "Accuracy by d.", formats={"accuracy": ".3f"}))
        d | accuracy
       50 |    0.813
    1,000 |    0.951
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], caption: str, formats: Mapping[str, str] | None = None
    ) -> None:
        self.headings = list(dict.fromkeys(heading for row in rows for heading in row))
        if not self.headings:
            raise ValueError("a table needs at least one row with at least one cell, got none")
        if unknown := sorted(set(formats or {}) - set(self.headings)):
            raise ValueError(f"no column {unknown[0]!r} to format; the columns are: {', '.join(self.headings)}")
        self.caption = caption
        self.cells = [[_written(row.get(h), (formats or {}).get(h)) for h in self.headings] for row in rows]
        self.numeric = [
            all(not cell or NUMBER.fullmatch(cell) for cell in column) for column in zip(*self.cells, strict=True)
        ]

    def __repr__(self) -> str:
        """The table as text, for a terminal."""
        lines = [self.headings, *self.cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headings))]
        padded = (
            " | ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        )
        return "\n".join(padded)

    def _repr_html_(self) -> str:
        side = ["right" if right else "left" for right in self.numeric]
        head = "".join(
            f'<th scope="col" {SIDE.format(s)}>{html.escape(h)}</th>' for h, s in zip(self.headings, side, strict=True)
        )
        body = ""
        for first, *rest in self.cells:
            cells = f'<th scope="row" {SIDE.format(side[0])}>{html.escape(first)}</th>'
            cells += "".join(
                f"<td {WHOLE.format(s)}>{html.escape(cell)}</td>" for cell, s in zip(rest, side[1:], strict=True)
            )
            body += f"<tr>{cells}</tr>"
        return (
            '<div class="pst-scrollable-table-container" tabindex="0" style="overflow-x: auto">'
            f'<table class="table subspace-table"><caption>{html.escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def _written(value: Any, how: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, Number):
        written = str(value)
    else:
        written = format(value, how or ("," if isinstance(value, int) else ".4g"))
    return SIGNED_ZERO.sub("", written)
