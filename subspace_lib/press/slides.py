"""Slides for the sessions of the course: from the questions and figures of the chapters that were executed last."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from subspace_lib.files import read_text, write_text
from subspace_lib.press.chapters import caption_of, read_notebook
from subspace_lib.press.markup import mathml_of
from subspace_lib.press.takeaway import Works, plain, works_of

FIGURES = 3
"""At most so many figures of a chapter: the first ones that the page does not fold away."""
IMAGES = ("image/svg+xml", "image/png")
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: slides</title>
<style>
@page {{ size: A4 landscape; margin: 12mm }}
html {{ font: 1.4rem/1.45 sans-serif; color: #1a1a1a; background: #fff }}
body {{ margin: 0; overflow-wrap: anywhere }}
section {{ box-sizing: border-box; min-height: 100vh; padding: 4vh 7vw; border-top: 1px solid #767676 }}
section:not(:last-child) {{ break-after: page }}
h1 {{ margin: 0; padding: 4vh 7vw }}
h1 + section {{ min-height: 80vh }}
h1, h2 {{ line-height: 1.2; color: #1d4f7c }}
img {{ display: block; max-width: 100%; height: 55vh; object-fit: contain; margin: auto }}
figcaption {{ font-size: 1rem; max-width: 60rem; margin: auto }}
@media print {{
  html {{ font-size: 16pt }}
  figcaption {{ font-size: 12pt }}
  h1 {{ height: 184mm; padding: 0 7vw; display: grid; align-content: center; break-after: page }}
  section, h1 + section {{ min-height: 0; border: 0; padding-block: 0 }}
  figure {{ height: 184mm; margin: 0; display: flex; flex-direction: column; justify-content: center; gap: 4mm }}
  img {{ flex: 0 1 140mm; min-height: 0; width: 100% }}
}}
</style>
<main>
<h1>{title}</h1>
{slides}
</main>
</html>
"""


def write_slides(book: Path, executed: Path, folder: Path) -> list[Path]:
    """Write a page of slides for each session of the plan in ``instructors.md``; gives the pages.

    Parameters
    ----------
    book : Path
        The folder of the pages as they are written.
    executed : Path
        Where the executed chapters lie. A chapter that is not there has no figures yet.
    folder : Path
        Where the slides go, in a folder beside the pages of the built book.

    Raises
    ------
    ValueError
        If a chapter is no notebook, or holds what has no plain form.
    OSError
        If a page cannot be written.
    """
    works = works_of(book / "references.bib")
    pages = []
    for number, (title, names) in enumerate(sessions(book / "instructors.md"), start=1):
        slides: list[str] = []
        for name in names:
            made = executed / f"{name}.ipynb"
            slides += slides_of(read_notebook(made if made.is_file() else book / f"{name}.ipynb"), works)
        text = PAGE.format(
            title=f"Session {number}: {escape(title)}",
            slides="\n".join(f"<section>{slide}</section>" for slide in slides),
        )
        pages.append(folder / f"session_{number}.html")
        write_text(pages[-1], text)
    return pages


def sessions(plan: Path) -> list[tuple[str, list[str]]]:
    """The title of each session in the table of the plan, and the chapters that its row names, each once."""
    rows = re.findall(r"(?m)^\| \d\. ([^|]+?) \|(.+)\|$", read_text(plan))
    return [(title, list(dict.fromkeys(re.findall(r"\]\((\w+)\.ipynb\)", row)))) for title, row in rows]


def slides_of(notebook: Mapping[str, Any], works: Works) -> Iterator[str]:
    """The slides of one chapter as HTML: its question with what to predict, its first figures, its misconception."""
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    title = texts[0].splitlines()[0].removeprefix("# ")
    question, claim = _first_bold(texts[0]), _first_bold(_section(texts, "A misconception"))
    yield _html(f"## {title}\n\n{question}\n\n{_section(texts, 'Predict first').replace('## ', '### ')}", works)
    yield from list(_figures(notebook["cells"], works))[:FIGURES]
    if claim:
        yield _html(f"## Is this true?\n\n{claim}", works)


def _section(texts: list[str], heading: str) -> str:
    """A section up to the next code, without what it folds away; empty if there is none."""
    found = re.search(rf"(?ms)^## {heading}[^\n]*\n.*?(?=^#|\Z|\0)", "\n\0\n".join(texts))
    return re.sub(r"(?s)<details.*?</details>", "", found[0]) if found else ""


def _first_bold(text: str) -> str:
    found = re.search(r"\*\*[^*]+\*\*", text)
    return found[0] if found else ""


def _figures(cells: list[dict[str, Any]], works: Works) -> Iterator[str]:
    for cell in cells:
        about = cell["metadata"].get("mystnb", {})
        if "figure" not in about or "hide-cell" in cell["metadata"].get("tags", []):
            continue
        for data in (output.get("data", {}) for output in cell["outputs"]):
            if kind := next((kind for kind in IMAGES if kind in data), None):
                raw = "".join(data[kind])
                coded = raw.strip() if kind == "image/png" else base64.b64encode(raw.encode()).decode()
                alt, caption = escape(about.get("image", {}).get("alt", "")), _html(caption_of(cell), works)
                image = f'<img src="data:{kind};base64,{coded}" alt="{alt}">'
                yield f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _html(text: str, works: Works) -> str:
    """Markdown as HTML, with formulas that need no script."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(content: str, options: Mapping[str, Any]) -> str:
        return mathml_of(content.strip(), "block" if options["display_mode"] else "inline")

    reader = MarkdownIt().enable("table").use(dollarmath_plugin, renderer=formula)
    rendered: str = reader.render(plain(text, works, "../"))
    return rendered
