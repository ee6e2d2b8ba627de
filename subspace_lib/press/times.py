"""How long a chapter takes: minutes to read it, counted, and seconds to run it, measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "Time: computed when the book is built."
"""The line in a chapter's prerequisites that ``write_times`` replaces."""
WORDS, LINES, FIGURES, FORMULAS = 100, 80, 2, 30
"""How many a student reads in a minute: words of prose, lines of code, figures, formulas within the text."""
EXERCISE_AND_QUIZ = 15
"""Minutes for one exercise, tried without its solution, and the quiz."""


@dataclass(frozen=True)
class Length:
    """What the main path of a chapter asks of a reader: all that is neither folded away nor set-up.

    Attributes
    ----------
    words : int
        Words of prose, without code, tables' rules and displayed formulas.
    lines : int
        Lines of code, without empty ones.
    longest, median : int
        The lines of the longest and of the median cell of code.
    figures : int
        Figures, sliders and laboratories.
    formulas : int
        Formulas within the text.
    """

    words: int
    lines: int
    longest: int
    median: int
    figures: int
    formulas: int

    @property
    def minutes(self) -> float:
        """Minutes to read the main path.

        With ``EXERCISE_AND_QUIZ`` this stays within 15% of the times that a student took for ten chapters of this
        book (40 to 80 minutes).
        """
        return self.words / WORDS + self.lines / LINES + self.figures / FIGURES + self.formulas / FORMULAS


def length_of(notebook: Mapping[str, Any]) -> Length:
    """Count what stands on the main path of a notebook."""
    words = figures = formulas = 0
    cells: list[int] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"(?s)<details.*?</details>|\$\$.*?\$\$|^(`{3,}|~{3,}).*?^\1", "", source, flags=re.M)
            formulas += len(re.findall(r"\$[^$]+\$", text))
            words += len(re.findall(r"[A-Za-z][\w'-]*", text))
        elif cell["cell_type"] == "code" and not {"parameters", "setup", "hide-cell", "remove-cell"} & set(tags):
            figures += "figure" in cell["metadata"].get("mystnb", {}) or bool(
                re.search(r"\b(FrameSlider|Lab)\(", source)
            )
            if not {"hide-input", "remove-input"} & set(tags):
                cells.append(sum(bool(line.strip()) for line in source.splitlines()))
    cells.sort()
    return Length(words, sum(cells), max(cells, default=0), cells[len(cells) // 2] if cells else 0, figures, formulas)


def write_times(notebook: Mapping[str, Any], seconds: float, profile: str, device: str) -> None:
    """Put the minutes of reading, and what running took, in the place of ``PLACEHOLDER``."""
    ran = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    line = (
        f"Time: about {length_of(notebook).minutes:.0f} minutes for the main path, and {EXERCISE_AND_QUIZ} more for an "
        f"exercise and the quiz. Running all cells took {ran} (profile `{profile}`, {device})."
    )
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = "".join(cell["source"]).replace(PLACEHOLDER, line)
