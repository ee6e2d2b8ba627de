"""The book as an EPUB, for readers of ink and for the train: the chapters executed last, with no script in them."""

from __future__ import annotations

import re
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from zipfile import ZipFile

from subspace_lib.files import replaced_atomically
from subspace_lib.press.cards import draw_cover
from subspace_lib.press.chapters import KINDS, configuration
from subspace_lib.press.execution import running_folder
from subspace_lib.press.markup import finish
from subspace_lib.press.pages import assemble, check_built, run_builder
from subspace_lib.processes import tied

ONLY_WEB = {"sphinx_togglebutton", "sphinx_copybutton", "jupyter_book", "sphinx_comments", "sphinx_book_theme"}
ONLY_WEB |= {"sphinx_jupyterbook_latex", "sphinxext.opengraph"}
"""Extensions of ``_config.yml`` that bring scripts or pages' dress."""
STYLE = """
table { border-collapse: collapse; margin: 1em 0; font-size: .85em }
caption { text-align: left; padding: .3em 0 }
th, td { border: 1px solid; padding: .2em .5em; text-align: left; vertical-align: top }
th[scope="row"] { font-weight: normal }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8em }
img, svg { max-width: 100%; height: auto }
svg .grid, svg polyline { fill: none; stroke: currentColor }
svg text { fill: currentColor; font-size: 9px }
figure { margin: 1em 0; break-inside: avoid }
figcaption { font-size: .9em }
.kind, details { border-left: 2px solid; padding-left: .8em; margin: 1em 0 }
"""
"""What keeps figures, tables and code whole; colours and letters are the reader's own."""
GONE = "script, noscript, style, template, input, button, label, output, .tex, .why, .tag_setup, .headerlink, .expanded"
NAME = "training-in-parameter-subspaces"


def write_epub(root: Path) -> Path:
    """Write the chapters executed last as one EPUB 3; laboratories and sliders are still pictures there.

    Raises
    ------
    ValueError
        If there is no built book.
    BookError
        If the pages do not build.
    OSError
        If the file cannot be written.
    """
    epub = root / "_build" / f"{NAME}.epub"
    check_built(root)
    started = time.monotonic()
    about = configuration(root, *KINDS)
    with running_folder(root / "_build") as folder:
        book, built = folder / "book", folder / "epub"
        complete = assemble(root, root / "_build" / "executed", book)
        draw_cover(about["title"], book / "_static" / "mark.svg").savefig(book / "_static" / "cover.png")
        (book / "_static" / "reader.css").write_text(STYLE, encoding="utf-8")
        settings = "\n".join(f"{name} = {value!r}" for name, value in settings_of(about).items())
        (book / "conf.py").write_text(settings, encoding="utf-8")
        command = tied("sphinx", "-b", "epub", "-d", str(folder / "doctrees"), str(book), str(built))
        run_builder(command, complete, folder / "log")
        [archive] = built.glob("*.epub")
        with replaced_atomically(epub) as temporary:
            quieten(archive, temporary, about["html"].get("baseurl", ""))
    print(f"epub ... {time.monotonic() - started:.0f} s\n\nThe book is in {epub}", flush=True)
    return epub


def settings_of(about: dict[str, Any]) -> dict[str, Any]:
    """The settings of Sphinx for an EPUB, from those of Jupyter Book for the pages."""
    sphinx = about["sphinx"].get("config") or {}
    kept = {name: value for name, value in sphinx.items() if re.match("autodoc_|napoleon_|nitpick|bibtex_|nb_", name)}
    return {
        **kept,
        **about["parse"],
        "extensions": [name for name in sphinx.get("extensions", []) if name not in ONLY_WEB],
        "project": about["title"],
        "author": about["author"],
        "copyright": about["copyright"],
        "version": "1",
        "bibtex_bibfiles": about["bibtex_bibfiles"],
        "external_toc_exclude_missing": True,
        "exclude_patterns": about["exclude_patterns"],
        "nb_execution_mode": "off",
        "numfig": True,
        "html_static_path": ["_static/reader.css", "_static/cover.png"],
        "html_css_files": ["reader.css"],
        "epub_cover": ("_static/cover.png", "epub-cover.html"),
        "epub_identifier": NAME,
        "epub_uid": NAME,
        "epub_description": "Training a network in a random subspace, by running code.",
        "epub_contributor": about["author"],
        "epub_show_urls": "no",
        "epub_tocscope": "includehidden",
        "epub_tocdup": False,
        "epub_tocdepth": 2,
        "epub_use_index": False,
    }


def quieten(archive: Path, target: Path, address: str) -> None:
    """Copy an EPUB as Sphinx makes it, with pages that need no script, and with what they hold named in its manifest.

    Parameters
    ----------
    archive, target : Path
        The EPUB, and where the other one goes.
    address : str
        Where the book is published: there lead the links to what an EPUB does not hold.
    """
    with ZipFile(archive) as source, ZipFile(target, "w") as book:
        names = set(source.namelist())
        pages = {
            name: still_page(source.read(name).decode(), address + name.replace(".xhtml", ".html"), names)
            for name in names
            if name.endswith(".xhtml") and name != "nav.xhtml"
        }
        for item in source.infolist():  # the type first, and not packed, as Sphinx wrote it
            content: bytes | str = pages.get(item.filename) or source.read(item)
            if item.filename == "content.opf":
                content = _named(source.read(item).decode(), pages)
            book.writestr(item, content)


def still_page(page: str, address: str, names: Container[str]) -> str:
    """A page as readers of EPUB take it: XHTML with MathML, a picture for what moves, and links that lead somewhere.

    Parameters
    ----------
    page : str
        What Sphinx wrote.
    address : str
        The same page of the published book.
    names : container of str
        The files that the EPUB holds.
    """
    from bs4 import BeautifulSoup

    soup: Any = BeautifulSoup(finish(page), "html.parser")
    for noscript in soup.select("noscript:has(> math)"):
        noscript.math["alttext"] = noscript.find_previous_sibling(class_="tex").get_text().strip()[2:-2].strip()
        noscript.unwrap()
    for moving in soup.select(".subspace-lab, .subspace-slider"):
        link = soup.new_tag("a", href=address)
        link.string = "On the web you can move this."
        [still] = moving.select("figure.still, img:not([hidden])")
        moving.replace_with(still, link)
    for gone in soup.select(GONE):
        gone.decompose()
    for drawing in soup.select("svg[viewbox]"):
        drawing.attrs |= {"xmlns": "http://www.w3.org/2000/svg", "viewBox": drawing.attrs.pop("viewbox")}
    for details in soup.select("details[name]"):
        del details["name"]
    for entry in soup.select("[role=doc-biblioentry]"):
        entry["role"] = "listitem"
    for outer in soup.select("summary > p, p:has(> p, > ol, > ul)"):
        outer.name = "span" if outer.parent.name == "summary" else "div"
    for sheet in soup.select("link[rel=stylesheet]"):
        if sheet["href"] not in names:
            sheet.decompose()
    for link in soup.select("a[href]"):
        place, hash, part = link["href"].partition("#")
        if place and ":" not in place and place not in names:
            link["href"] = urljoin(address, place.replace(".xhtml", ".html") + hash + part)
    return str(soup)


def _named(manifest: str, pages: Mapping[str, str]) -> str:
    """The manifest, which has to say what a page holds."""
    for name, page in pages.items():
        held = " ".join(kind for kind, start in (("mathml", "<math"), ("svg", "<svg")) if start in page)
        if held:
            manifest = manifest.replace(f'href="{name}" media-type', f'href="{name}" properties="{held}" media-type')
    return manifest.replace('href="_static/cover.png"', 'href="_static/cover.png" properties="cover-image"', 1)
