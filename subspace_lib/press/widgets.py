"""Sliders and choices that need no kernel: they move on the built page, in Jupyter and in Colab alike."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from subspace_lib.press.figures import COLOURS
from subspace_lib.press.scripts import SCRIPT

Value = TypeVar("Value")
LIMIT_BYTES = 300_000
_numbers = itertools.count(1)

_MARKED = "<style>.subspace-formats .marked{outline:3px solid;outline-offset:-3px;font-weight:700}</style>"
_ALL = "<noscript><style>.subspace-slider img[hidden]{display:inline!important}</style></noscript>"


class FrameSlider(Generic[Value]):
    """A slider over pictures that were drawn beforehand.

    Shown as plain HTML: every frame is an image inside the page, and the slider shows one of them. It needs
    no kernel, no ipywidgets and no network; the arrow keys move it, and screen readers hear its value. A browser
    without JavaScript shows all frames. Where a kernel runs, ``live`` draws any other value too.

    Parameters
    ----------
    draw : callable
        ``draw(value)`` gives a matplotlib Figure. All frames should have the same size.
    values : sequence
        The values of the slider, at least two.
    label : str
        What the slider changes.
    alt : str or callable
        What is to be seen, for readers who do not see it; a callable gets the value.
    format : str
        How a value is written, as in ``str.format``.
    start : int
        Index of the frame that is shown first.

    Raises
    ------
    ValueError
        If there are fewer than two values, start is not an index of one, or the frames together pass 300 kB.
    """

    def __init__(
        self,
        draw: Callable[[Value], Figure],
        values: Sequence[Value],
        *,
        label: str,
        alt: str | Callable[[Value], str],
        format: str = "{}",
        start: int = 0,
    ) -> None:
        if len(values) < 2:
            raise ValueError(f"a slider needs at least two values, got {len(values)}")
        if not 0 <= start < len(values):
            raise ValueError(f"start must lie between 0 and {len(values) - 1}, got {start}")
        self.draw, self.label, self.alt, self.format, self.start = draw, label, alt, format, start
        self.labels = [format.format(value) for value in values]
        self.alts = [self._say(value) for value in values]
        self.frames = _png(*(draw(value) for value in values))
        size = sum(map(len, self.frames))
        if size > LIMIT_BYTES:
            raise ValueError(
                f"the {len(values)} frames take {size:,} bytes, more than {LIMIT_BYTES:,}; "
                "draw fewer or smaller ones, or with fewer colours"
            )

    def live(self, values: Sequence[Value]) -> Any:
        """The same slider over other values, each drawn when it is chosen: for Jupyter and Colab.

        Parameters
        ----------
        values : sequence
            The values to choose from.

        Returns
        -------
        ipywidgets.VBox
            The picture and its slider; dead without a kernel.

        Raises
        ------
        ValueError
            If there are no values.
        """
        import ipywidgets

        if not len(values):
            raise ValueError("live needs the values to choose from, and got none")
        choices = [(self.format.format(value), value) for value in values]
        slider = ipywidgets.SelectionSlider(options=choices, description=self.label, continuous_update=False)
        slider.style.description_width = "initial"
        picture = ipywidgets.HTML()

        def show(*_: object) -> None:
            [source], alt = _png(self.draw(slider.value)), html.escape(self._say(slider.value), quote=True)
            picture.value = f'<img src="data:image/png;base64,{source}" alt="{alt}" style="max-width:100%">'

        slider.observe(show, "value")
        show()
        return ipywidgets.VBox([picture, slider])

    def _say(self, value: Value) -> str:
        return self.alt(value) if callable(self.alt) else self.alt

    def _repr_html_(self) -> str:
        name = f"subspace-slider-{next(_numbers)}"
        images = "".join(
            f'<img src="data:image/png;base64,{frame}" alt="{html.escape(alt, quote=True)}" '
            f'data-label="{html.escape(label, quote=True)}" style="max-width:100%"'
            f"{'' if i == self.start else ' hidden'}>"
            for i, (frame, label, alt) in enumerate(zip(self.frames, self.labels, self.alts, strict=True))
        )
        now = html.escape(self.labels[self.start], quote=True)
        return (
            f'<div class="subspace-slider">{images}'
            f'<div><label for="{name}">{html.escape(self.label)}</label> <span style="white-space:nowrap">'
            f'<input type="range" id="{name}" min="0" max="{len(self.frames) - 1}" step="1" value="{self.start}" '
            f'aria-valuetext="{now}" autocomplete="off" style="width:50%;vertical-align:middle"> '
            f'<output for="{name}">{now}</output></span></div>{_ALL}{_script()}</div>'
        )


_CELL = "border:1px solid;padding:.2em .5em;text-align:center;min-width:1.6em"


class FormatExplorer:
    """A small matrix in the sparse formats COO, CSR and CSC: choose a format, and walk through its entries.

    Shown as plain HTML. Each format is a ``<details>`` element that holds the matrix and the arrays that store it, as
    tables, and a slider that marks one entry in all of them and says how it is found. Formats open and close with no
    JavaScript, by mouse or keyboard, one at a time in browsers that know the attribute ``name``; only the slider needs
    a line of JavaScript. No kernel, no network.

    Parameters
    ----------
    matrix : sequence of sequences of numbers, or numpy array
        Shape (rows, columns); at least one entry is not zero.

    Attributes
    ----------
    arrays : dict of dict of list
        For each format the names of its arrays and what they hold, as PyTorch stores them.

    Raises
    ------
    ValueError
        If the matrix is not of two dimensions, all zero, or the page would pass 300 kB.

    Examples
    --------
    >>> FormatExplorer([[0, 5], [7, 0]]).arrays["CSR"]["row_starts"]
    [0, 1, 2]
    """

    def __init__(self, matrix: Sequence[Sequence[float]] | np.ndarray) -> None:
        self.matrix = np.asarray(matrix)
        if self.matrix.ndim != 2:
            raise ValueError(f"the matrix must have two dimensions, got shape {self.matrix.shape}")
        rows, columns = (index.tolist() for index in np.nonzero(self.matrix))
        if not rows:
            raise ValueError(f"the matrix of shape {self.matrix.shape} holds no entry that is not zero")
        by_row = list(zip(rows, columns, strict=True))
        by_column = sorted(by_row, key=lambda entry: (entry[1], entry[0]))
        self._order = {"COO": by_row, "CSR": by_row, "CSC": by_column}
        self.arrays: dict[str, dict[str, Sequence[float]]] = {
            "COO": {"row_of": rows, "column_of": columns, "value": self._values(by_row)},
            "CSR": {
                "row_starts": _starts(rows, len(self.matrix)),
                "column_of": columns,
                "value": self._values(by_row),
            },
            "CSC": {
                "column_starts": _starts([column for _, column in by_column], self.matrix.shape[1]),
                "row_of": [row for row, _ in by_column],
                "value": self._values(by_column),
            },
        }
        if (size := len(self._repr_html_())) > LIMIT_BYTES:
            raise ValueError(f"the page would take {size:,} bytes, more than {LIMIT_BYTES:,}; use a smaller matrix")

    def say(self, kind: str, entry: int) -> str:
        """How entry number ``entry`` of a format is found in its arrays, in words."""
        row, column = self._order[kind][entry]
        arrays = self.arrays[kind]
        value = f"value[{entry}] = {arrays['value'][entry]}"
        if kind == "COO":
            return f"entry {entry}: row_of[{entry}] = {row}, column_of[{entry}] = {column}, {value}"
        major, minor = (row, column) if kind == "CSR" else (column, row)
        long, other = ("row", "column") if kind == "CSR" else ("column", "row")
        starts = arrays[f"{long}_starts"]
        return (
            f"entry {entry}: {long} {major} holds the entries from {long}_starts[{major}] = {starts[major]} up to, "
            f"but without, {long}_starts[{major + 1}] = {starts[major + 1]}; {other}_of[{entry}] = {minor}, {value}"
        )

    def _values(self, order: Sequence[tuple[int, int]]) -> list[float]:
        return [self.matrix[entry].item() for entry in order]

    def _entries(self, kind: str, array: str, position: int) -> list[int]:
        """The entries that a cell of an array has to do with."""
        if not array.endswith("_starts"):
            return [position]
        axis = 0 if kind == "CSR" else 1
        near = (position - 1, position)  # where one row ends, the next begins
        return [entry for entry, place in enumerate(self._order[kind]) if place[axis] in near]

    def _matrix_html(self, kind: str) -> str:
        number = {place: entry for entry, place in enumerate(self._order[kind])}
        head = "".join(f'<th scope="col">{column}</th>' for column in range(self.matrix.shape[1]))
        body = ""
        for row, values in enumerate(self.matrix.tolist()):
            cells = (_cell(value, [number[row, c]] if (row, c) in number else []) for c, value in enumerate(values))
            body += f'<tr><th scope="row">{row}</th>{"".join(cells)}</tr>'
        return _table("the matrix", f"<tr><td></td>{head}</tr>{body}")

    def _arrays_html(self, kind: str) -> str:
        tables = ""
        for name, values in self.arrays[kind].items():
            positions = "".join(f'<th scope="col">{position}</th>' for position in range(len(values)))
            cells = (_cell(value, self._entries(kind, name, position)) for position, value in enumerate(values))
            tables += _table(f"{name}, {len(values)} numbers", f"<tr>{positions}</tr><tr>{''.join(cells)}</tr>")
        return tables

    def _repr_html_(self) -> str:
        group = f"subspace-formats-{next(_numbers)}"
        rules = {
            "COO": "COO, coordinates: each entry with its row and its column",
            "CSR": "CSR, compressed sparse rows: the entries row by row, and where each row starts",
            "CSC": "CSC, compressed sparse columns: the entries column by column, and where each column starts",
        }
        pages = ""
        for kind, rule in rules.items():
            said = [self.say(kind, entry) for entry in range(len(self._order[kind]))]
            label = f"{group}-{kind}"
            pages += (
                f'<details name="{group}"{" open" if kind == "COO" else ""} style="margin:.5em 0">'
                f'<summary style="cursor:pointer">{rule}</summary>'
                f'<div style="display:flex;flex-wrap:wrap;gap:0 2em">{self._matrix_html(kind)}'
                f"<div>{self._arrays_html(kind)}</div></div>"
                f'<div><label for="{label}">{kind}, entry</label> '
                f'<input type="range" id="{label}" min="0" max="{len(said) - 1}" step="1" value="0" '
                f'aria-valuetext="{said[0]}" data-say="{"|".join(said)}" autocomplete="off" '
                f'style="width:40%;vertical-align:middle"><br><output for="{label}">{said[0]}</output></div></details>'
            )
        return f'<div class="subspace-formats">{pages}{_script()}</div>'


def _starts(sorted_places: Sequence[int], count: int) -> list[int]:
    """Where each row (or column) starts in a list of entries that is sorted by it, and where the last one ends."""
    return [int(start) for start in np.searchsorted(sorted_places, range(count + 1))]


def _cell(value: float, entries: Sequence[int]) -> str:
    marked = ' class="marked"' if 0 in entries else ""
    about = f' data-entries="{" ".join(map(str, entries))}"' if entries else ""
    return f'<td{about}{marked} style="{_CELL}">{value}</td>'


def _table(caption: str, rows: str) -> str:
    style = "border-collapse:collapse;margin:.4em 0;width:auto;display:table"
    top = "caption-side:top;text-align:left;white-space:nowrap;color:inherit"
    return f'<table style="{style}"><caption style="{top}">{caption}</caption><tbody>{rows}</tbody></table>'


def _script() -> str:
    """The script of the book's pages, for the output of a cell; on a page it does nothing a second time."""
    return f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>{_MARKED}"


def _png(*figures: Figure) -> list[str]:
    """The figures as PNG in base64, with one palette of few colours for all, also the book's own; they are closed."""
    pictures = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        plt.close(figure)
        pictures.append(Image.open(buffer).convert("RGB"))
    together = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    for number, picture in enumerate(pictures):
        together.paste(picture, (0, sum(p.height for p in pictures[:number])))
    own = bytes.fromhex("ffffff" + "".join(COLOURS).replace("#", ""))  # thin lines are too few pixels to be counted
    palette = together.quantize(64 - len(own) // 3)
    found = palette.getpalette() or []
    for at in range(0, len(found), 3):
        if min(found[at : at + 3]) > 248:  # nearly white: the ground would stand out from the page
            found[at : at + 3] = [255] * 3
    palette.putpalette([*found, *own])
    packed = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        packed.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return packed
