"""Sliders that need no kernel: they move on the built page, in Jupyter and in Colab alike."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

Value = TypeVar("Value")
LIMIT_BYTES = 300_000
_numbers = itertools.count(1)

_SHOW = (
    "const w=this.closest('.subspace-slider');"
    "w.querySelectorAll('img').forEach((f,i)=>{f.hidden=i!=this.value});"
    "const t=w.querySelectorAll('img')[this.value].dataset.label;"
    "w.querySelector('output').value=t;this.setAttribute('aria-valuetext',t);"
)


class FrameSlider:
    """A slider over pictures that were drawn beforehand.

    Shown as plain HTML: every frame is an image inside the page, and the slider shows one of them. It needs
    no kernel, no ipywidgets and no network; the arrow keys move it, and screen readers hear its value.

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
        If there are fewer than two values, or the frames together pass 300 kB.
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
        self.label, self.start = label, start
        self.labels = [format.format(value) for value in values]
        self.alts = [alt(value) if callable(alt) else alt for value in values]
        self.frames = [_png(draw(value)) for value in values]
        size = sum(map(len, self.frames))
        if size > LIMIT_BYTES:
            raise ValueError(
                f"the {len(values)} frames take {size:,} bytes, more than {LIMIT_BYTES:,}; "
                "draw fewer or smaller ones, or with fewer colours"
            )

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
            f'<div><label for="{name}">{html.escape(self.label)}</label> '
            f'<input type="range" id="{name}" min="0" max="{len(self.frames) - 1}" step="1" value="{self.start}" '
            f'aria-valuetext="{now}" autocomplete="off" oninput="{_SHOW}" style="width:50%;vertical-align:middle"> '
            f'<output for="{name}">{now}</output></div></div>'
        )


def _png(figure: Figure) -> str:
    """The figure as a PNG of few colours, in base64; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    small = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    small.save(packed, format="PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode("ascii")
