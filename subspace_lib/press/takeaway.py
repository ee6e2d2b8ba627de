"""Notebooks to take away: for Colab and Jupyter, which know nothing of citations, figures and pages of a book."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subspace_lib.files import read_text, write_text
from subspace_lib.press.chapters import (
    book_of,
    caption_of,
    chapter_names,
    check_apart,
    configuration,
    read_notebook,
)
from subspace_lib.processes import commit

Works = Mapping[str, tuple[str, str, str]]
HIDDEN = {"hide-cell", "hide-input", "remove-input", "setup"}


def write_notebooks(root: Path, folder: Path, solutions: bool = True) -> None:
    """Write the chapters of a checkout, as ``plain_notebook`` makes them, into a folder; for students no solutions.

    Each fetches the library of the commit that it is written from. Where a file of the checkout has changed, nobody
    else has that library, and the last release is left to be fetched.

    Raises
    ------
    ValueError
        If a chapter is no notebook, or holds what has no plain form; the message names it. Or if the folder is the
        one of the chapters themselves.
    """
    book = book_of(root)
    check_apart(folder, book)
    address = configuration(root).get("html", {}).get("baseurl", "")
    references = book / "references.bib"
    works = works_of(references) if references.is_file() else {}
    revision = found if re.fullmatch("[0-9a-f]{40}", found := commit(root, whole=True)) else None
    folder.mkdir(parents=True, exist_ok=True)
    for name in chapter_names(book):
        path = book / f"{name}.ipynb"
        chapter = read_notebook(path)
        try:
            notebook = plain_notebook(chapter if solutions else without_solutions(chapter), works, address, revision)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        write_text(folder / f"{name}.ipynb", json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def without_solutions(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with an empty cell for each folded one of an exercise, and with no outputs."""
    cells, heading = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"(?m)^#{1,3} .+", "".join(cell["source"])) or [heading])[-1]
        elif cell["cell_type"] == "code":
            cell = {**cell, "execution_count": None, "outputs": []}
            if heading.startswith("### Exercise ") and "hide-cell" in cell["metadata"].get("tags", []):
                cell |= {"metadata": {}, "source": []}
        cells.append(cell)
    return {**notebook, "cells": cells}


def plain_notebook(
    notebook: Mapping[str, Any], works: Works, address: str, revision: str | None = None
) -> dict[str, Any]:
    """The same notebook in Markdown that every reader of notebooks shows.

    Citations become names with a year and a link, links to other pages lead to the published book, and each figure's
    caption follows its cell. The code stays as it is, but for the revision; what the book folds away is folded too.

    Parameters
    ----------
    notebook : mapping
        A chapter, without outputs.
    works : mapping
        Names, year and link of each key that may be cited, as ``works_of`` gives.
    address : str
        Where the book is published.
    revision : str, optional
        Of which commit the set-up cell fetches the library; by default of the release that it names.

    Raises
    ------
    ValueError
        If a citation is not among the works, or a role or directive has no plain form.
    """
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells.append({**cell, "source": plain(source, works, address)})
            continue
        tags = set(cell["metadata"].get("tags", []))
        if revision and "setup" in tags:
            source = re.sub(r'"v[\d.]+"', f'"{revision}"', source)
        folded = {"cellView": "form"} if HIDDEN & tags else {}
        cells.append({**cell, "source": source, "metadata": cell["metadata"] | folded})
        if caption := caption_of(cell):
            text = f"**Figure.** {plain(caption, works, address)}"
            name = {"id": f"{cell['id']}-caption"[:64]} if "id" in cell else {}  # notebooks had none before 2020
            cells.append({"cell_type": "markdown", **name, "metadata": {}, "source": text})
    return {**notebook, "cells": cells}


def plain(text: str, works: Works, address: str) -> str:
    """Text of a page in plain Markdown.

    Examples
    --------
    >>> works = {"li2018": ("Li et al.", "2018", "https://arxiv.org/abs/1804.08838")}
    >>> plain("Few are needed {cite:p}`li2018`; see [notation](notation.md).", works, "https://book.org/")
    'Few are needed ([Li et al., 2018](https://arxiv.org/abs/1804.08838)); see [notation](https://book.org/notation.html).'
    """

    def cited(found: re.Match[str]) -> str:
        keys = [key.strip() for key in found[2].split(",")]
        if unknown := [key for key in keys if key not in works]:
            raise ValueError(f"{unknown[0]!r} is cited and not in references.bib; add it there")
        chosen = [works[key] for key in keys]
        shown = "{} ({})" if found[1] == ":t" else "{}, {}"
        said = [f"[{shown.format(names, year)}]({link or 'bibliography.md'})" for names, year, link in chosen]
        return ", ".join(said) if found[1] == ":t" else f"({'; '.join(said)})"

    def figure(found: re.Match[str]) -> str:
        alt = re.search(r"(?m)^:alt: (.*)$", found[2])
        return f"![{alt[1] if alt else ''}]({found[1]})\n\n*{' '.join(found[3].split())}*"

    text = re.sub(r"(?s)```\{figure\} (\S+)\n((?::\w+:[^\n]*\n)*)\n?(.*?)\n?```", figure, text)
    text = re.sub(r"\{cite(:[pt])?\}`([^`]+)`", cited, text)
    text = re.sub(r"\{(?:download|doc|ref)\}`([^`<]+?) <([^`>]+)>`", r"[\1](\2)", text)
    page = r"\]\(([\w/-]+\.(?:ipynb|md)|_static/[^)\s]+?)(#[^)\s]*)?\)"
    text = re.sub(page, lambda found: f"]({address}{_built(found[1])}{found[2] or ''})", text)
    if left := re.search(r"(?m)\{[a-z][\w:-]*\}`[^`]*`|^(?:`{3,}|:{3,})\{[^\n]*|^\([\w-]+\)=$", text):
        raise ValueError(f"{left[0]!r} has no plain form; give it one in {Path(__file__).name}, or write it plainly")
    return text


def works_of(references: Path) -> dict[str, tuple[str, str, str]]:
    """Names, year and link of each entry of a BibTeX file.

    Raises
    ------
    ValueError
        If the file cannot be read, or a work has no author or year; the message names it.
    """
    from pybtex.database import parse_string
    from pybtex.exceptions import PybtexError
    from pybtex.richtext import Text

    try:
        entries = parse_string(read_text(references), "bibtex").entries
    except PybtexError as error:
        raise ValueError(f"{references} is not BibTeX: {' '.join(str(error).split())}") from None
    works = {}
    for key, entry in entries.items():
        if "author" not in entry.persons or "year" not in entry.fields:
            raise ValueError(f"{references}: {key!r} needs an author and a year")
        found = dict(entry.fields)
        names = [" ".join([*person.prelast_names, *person.last_names]) for person in entry.persons["author"]]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        links = {"url": "{}", "doi": "https://doi.org/{}", "eprint": "https://arxiv.org/abs/{}"}
        link = next((address.format(found[field]) for field, address in links.items() if field in found), "")
        works[key] = (str(Text.from_latex(who)), found["year"], link)
    return works


def _built(page: str) -> str:
    return re.sub(r"\.(ipynb|md)$", ".html", page)
