"""One style for every figure of the book, and the plots that several chapters share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from subspace_lib.files import replaced_atomically
from subspace_lib.study.records import read_table

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#C46A9C", "#B97C00", "#3A98D2", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; always used together with MARKERS.

Three of the hues are darker than theirs, so that every line keeps a contrast of 3 on a white page. A dark page shows
figures with their lightness turned over (``book.css``), and keeps at least as much.
"""

QUIET = "#858585"
"""For lines that stand behind the others, such as contours: no line is paler than this, and none is translucent."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def use_style() -> None:
    """Give matplotlib the book's style: white ground, readable sizes, colours and markers that go in pairs.

    In a notebook figures are shown as SVG where that is smaller, else as PNG with two pixels a point.
    """
    cycle = cycler(color=COLOURS) + cycler(marker=MARKERS)
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycle,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "figure.facecolor": "white",
            "figure.figsize": (6.8, 4.0),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.08,  # inches; a panel's title keeps off the axis above it
            "font.size": 11,
            "legend.frameon": False,
            "lines.markersize": 5,
            "savefig.facecolor": "white",
            "svg.hashsalt": "subspace",  # the same figure gives the same file
        }
    )
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if (shell := get_ipython()) is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
        shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, _svg_if_smaller)


def _svg_if_smaller(figure: Figure) -> str | None:
    from IPython.core.pylabtools import print_figure, retina_figure

    svg: str = print_figure(figure, fmt="svg")
    return svg if len(svg) < len(retina_figure(figure)[0]) else None


def provenance(ax: Axes, text: str) -> None:
    """Write above the axes, in small grey letters, where the data came from."""
    ax.annotate(text, (1, 1.01), xycoords="axes fraction", ha="right", va="bottom", fontsize=9, color="#555555")


def axis_of_d(ax: Axes) -> None:
    """Make the horizontal axis the logarithmic axis of d, with ticks such as 200, 500, 1k."""
    ax.set(xscale="log", xlabel="d, the dimension of the subspace")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{d / 1000:g}k" if d >= 1000 else f"{d:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def write_benchmark_picture(table: Path) -> Path:
    """Draw a table of the benchmark, as SVG beside it; gives the picture's path."""
    picture = table.with_suffix(".svg")
    with replaced_atomically(picture) as partial:
        draw_benchmark(read_table(table)).savefig(partial, format="svg")
    return picture


def draw_benchmark(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Three panels from the rows of the benchmark: training steps, and products over d and over D."""
    fig, axes = plt.subplots(3, 1, figsize=(6.8, 9.5), layout="constrained")
    steps = [row for row in rows if row["part"] == "step" and row.get("step_ms")]
    names = [f"{row['projection']} {row['layout']}".strip() for row in steps]
    bars = axes[0].barh(names, [row["step_over_direct"] for row in steps], color=COLOURS[0])
    axes[0].bar_label(bars, [f"{row['step_over_direct']:.2f}" for row in steps], padding=3)
    axes[0].axvline(1, color="black", ls="--", marker="")
    axes[0].set(xscale="log", xlabel="training step over the direct step (dashed)")
    axes[0].margins(x=0.1)
    axes[0].invert_yaxis()
    for ax, part, fixed in ((axes[1], "d", "D"), (axes[2], "D", "d")):
        chosen = [row for row in rows if row["part"] == part]
        for index, name in enumerate(dict.fromkeys(row["projection"] for row in chosen)):
            line = [row for row in chosen if row["projection"] == name]
            times = [row["forward_ms"] + row["adjoint_ms"] for row in line]
            ax.plot([row[part] for row in line], times, color=COLOURS[index], marker=MARKERS[index], label=name)
        at = f" at {fixed} = {chosen[0][fixed]:,}" if chosen else ""
        ax.set(xscale="log", yscale="log", xlabel=f"{part}{at}", ylabel="forward + adjoint, ms")
        if chosen:
            ax.legend(fontsize=9)
    if rows:
        provenance(axes[0], f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}")
    return fig


def plot_against_d(
    ax: Axes, values: Mapping[int, Sequence[float]], label: str, *, index: int = 0, baseline: Sequence[float] = ()
) -> None:
    """Draw accuracy against d: the mean of the runs, the range from lowest to highest, and the 90% line.

    Parameters
    ----------
    ax : Axes
        Where to draw; the axis of d becomes logarithmic.
    values : mapping of int to sequence of float
        For each d, the accuracy of each run.
    label : str
        Name of the curve in the legend.
    index : int
        Which of the style's colours and markers to use.
    baseline : sequence of float
        Accuracies of direct training; their mean is drawn solid, 90% of it dashed.
    """
    d = sorted(values)
    runs = [np.asarray(values[one]) for one in d]
    means = np.array([run.mean() for run in runs])
    spread = np.array([[m - run.min() for run, m in zip(runs, means, strict=True)]])
    spread = np.concatenate([spread, [[run.max() - m for run, m in zip(runs, means, strict=True)]]])
    colour = COLOURS[index]
    ax.errorbar(d, means, yerr=spread, color=colour, marker=MARKERS[index], capsize=3, label=label)
    if len(baseline):
        level = float(np.mean(baseline))
        ax.axhline(level, color=colour, lw=1, marker="")
        ax.axhline(0.9 * level, color=colour, lw=1, ls="--", marker="")
    axis_of_d(ax)
    ax.set_ylabel("validation accuracy")
