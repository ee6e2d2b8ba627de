"""What is shown where somebody shares a page: a picture for each chapter, with its question and its idea."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Polygon

from subspace_lib.press.scripts import plain

WIDTH, HEIGHT = 1200, 630  # pixels: what the sites that show cards ask for
INK, GREY = "#1b2733", "#5a6673"


def headline(notebook: Mapping[str, Any]) -> tuple[str, str]:
    """The title of a chapter and its question, or else its first sentence, as plain text.

    Examples
    --------
    >>> headline({"cells": [{"source": "# Sparse formats\\n\\n**Why is sparse $P$ slow?**\\n\\nMore."}]})
    ('Sparse formats', 'Why is sparse P slow?')
    """
    title, _, rest = "".join(notebook["cells"][0]["source"]).strip().partition("\n")
    question = re.match(r"\s*(\*\*.+?\*\*(?=\n|$)|.+?[.?!](?=\s|$))", rest, flags=re.S)
    return plain(title.lstrip("# ")), plain(question[1]) if question else ""


def figure_of(notebook: Mapping[str, Any]) -> bytes | None:
    """The PNG of a chapter's first figure, the picture of its idea; None where it shows none."""
    figures = (
        output["data"]["image/png"]
        for cell in notebook["cells"]
        if "figure" in cell["metadata"].get("mystnb", {})
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    )
    first = next(figures, None)
    return None if first is None else base64.b64decode("".join(first))


def draw_card(book: str, title: str, question: str, picture: bytes | None, mark: Path) -> Figure:
    """The card of a page: the mark and the name of the book, the page's title and question, and a picture beside them.

    Parameters
    ----------
    book, title, question : str
        What is written.
    picture : bytes, optional
        A PNG; without one the mark stands in its place.
    mark : Path
        The mark of the book, an SVG whose paths are straight lines.
    """
    with plt.style.context("default"):
        fig = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
        _draw_mark(fig, (0.045, 0.8, 0.07, 0.13), mark)
        fig.text(0.125, 0.865, book, fontsize=19, color=GREY, va="center")
        title, question = textwrap.fill(title, 17), textwrap.fill(question, 31)
        fig.text(0.05, 0.72, title, fontsize=36, color=INK, weight="bold", va="top", linespacing=1.15)
        below = 0.66 - 0.098 * len(title.splitlines())
        fig.text(0.05, below, question, fontsize=20, color=INK, va="top", linespacing=1.4)
        place = (0.5, 0.09, 0.465, 0.68)
        if picture is None:
            _draw_mark(fig, place, mark)
        else:
            ax = fig.add_axes(place, anchor="E")
            ax.imshow(imread(io.BytesIO(picture)), interpolation="antialiased")
            ax.axis("off")
        fig.add_artist(Polygon([(0, 0), (1, 0), (1, 0.022), (0, 0.022)], color="#0072B2"))
    return fig


def draw_cover(book: str, mark: Path) -> Figure:
    """The cover of the book as one file: its title above its mark."""
    with plt.style.context("default"):
        fig = plt.figure(figsize=(6, 9), dpi=150, facecolor="white")
        fig.text(0.5, 0.8, textwrap.fill(book, 12), fontsize=34, color=INK, weight="bold", ha="center", va="center")
        _draw_mark(fig, (0.15, 0.14, 0.7, 0.47), mark)
        fig.add_artist(Polygon([(0, 0), (1, 0), (1, 0.015), (0, 0.015)], color="#0072B2"))
    return fig


def add_card(notebook: dict[str, Any], book: str, picture: Path, mark: Path) -> None:
    """Draw the card of a chapter, and name it in the chapter's metadata, where the page's description finds it.

    Parameters
    ----------
    notebook : dict
        The chapter, executed; its metadata are changed.
    book : str
        The title of the book.
    picture : Path
        The file to write: ``_static/cards/NAME.png`` in the folder of the book.
    mark : Path
        As in ``draw_card``.
    """
    title, question = headline(notebook)
    picture.parent.mkdir(parents=True, exist_ok=True)
    fig = draw_card(book, title, question, figure_of(notebook), mark)
    fig.savefig(picture, dpi=100)
    plt.close(fig)
    about = {"image": f"_static/cards/{picture.name}", "image:alt": f"{title}: {question}"}
    about |= {"image:width": str(WIDTH), "image:height": str(HEIGHT)}
    notebook["metadata"] |= {f"og:{key}": value for key, value in about.items()}


def _draw_mark(fig: Figure, place: tuple[float, float, float, float], mark: Path) -> None:
    """The lines of the mark; an area where a path is closed and filled."""
    ax = fig.add_axes(place, aspect="equal", xlim=(0, 32), ylim=(32, 0))
    ax.axis("off")
    width = place[2] * WIDTH / 100
    for tag in re.findall(r"<path[^>]*>", mark.read_text(encoding="utf-8")):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        for line in attributes["d"].split("M")[1:]:
            points = np.array(re.findall(r"([\d.]+) ([\d.]+)", line), dtype=float)
            colours = {"facecolor": attributes.get("fill", "none"), "edgecolor": attributes["stroke"]}
            ax.add_patch(Polygon(points, closed="Z" in line, linewidth=width, joinstyle="round", **colours))
