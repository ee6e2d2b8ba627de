"""The scripts of the pages: ours, the words that it explains, and none that stands inside a page."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from subspace_lib.files import read_text

SCRIPT = Path(__file__).with_name("book.js")
LETTERS = {r"\theta": "θ", r"\Delta ": "Δ", r"\top": "ᵀ", "_0": "₀", r"\mathrm": "", **dict.fromkeys("^{}$`*", "")}


def terms_of(notation: str) -> list[tuple[str, str]]:
    """The terms that a page defines in bold, each with its meaning as plain text, the longest first.

    Examples
    --------
    >>> terms_of("**Reach**\\n: the share of $P$'s rows.\\n\\n**Family, layout**\\n: a way to draw $P$.\\n")
    [('layout', "a way to draw P."), ('Family', 'a way to draw P.'), ('Reach', "the share of P's rows.")]
    """
    found = re.findall(r"(?m)^\*\*(.+?)\*\*\n: (.+)$", notation)
    pairs = [(term.strip(), plain(meaning)) for terms, meaning in found for term in terms.split(",")]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def write_scripts(book: Path, static: Path) -> None:
    """Put the script, and the terms where the book has a page of them, into the folder that every page loads from."""
    static.mkdir(parents=True, exist_ok=True)
    static.joinpath("book.js").write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    notation = book / "notation.md"
    if notation.exists():
        terms = json.dumps(terms_of(read_text(notation)), ensure_ascii=False)
        static.joinpath("terms.js").write_text(f"window.subspaceTerms = {terms};\n", encoding="utf-8")


def hoist_scripts(page: str, folder: Path, address: str) -> str:
    """A page whose scripts stand in files, for servers that forbid code inside pages (``script-src 'self'``).

    Parameters
    ----------
    page : str
        The HTML.
    folder, address
        Where the files go, each under a name that follows from its content, and what the page calls that folder.

    Returns
    -------
    str
        The same page: inline scripts have become files, and what a button did ``onclick`` a file attaches to it.
    """

    def moved(attributes: str, code: str) -> str:
        name = f"{hashlib.sha256(code.encode()).hexdigest()[:16]}.js"
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_text(code, encoding="utf-8")
        return f'<script{attributes} src="{address}/{name}"></script>'

    def script(found: re.Match[str]) -> str:
        attributes, code = found.groups()
        is_code = code.strip() and not re.search(r" (src|type)=", attributes)
        return moved(attributes, code) if is_code else found[0]

    def button(found: re.Match[str]) -> str:
        code = f"document.currentScript.previousElementSibling.addEventListener('click', () => {{ {found[2]} }});"
        return f"{found[1]}{found[3]}{moved('', code)}"

    page = re.sub(r"(?s)<script((?: [^>]*)?)>(.*?)</script>", script, page)
    return re.sub(r'(?s)(<button\b[^>]*?)\sonclick="([^"]*)"(.*?</button>)', button, page)


def plain(text: str) -> str:
    """A line of Markdown as plain text, its formulas in letters."""
    for written, shown in LETTERS.items():
        text = text.replace(written, shown)
    return re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text)
