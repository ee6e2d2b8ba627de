"""The book as a PDF: what is shown, what is left out, and what is said when it cannot be made."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from subspace_lib.press.chapters import BookError
from subspace_lib.press.pages import FLAGS, READY, print_book, print_page
from subspace_lib.press.scripts import SCRIPT


def pages_of(page: Path, inside: str, boxes: int = 1) -> int:
    """Pages of a PDF made of closed boxes, of which one may be open at a time, and which are long when open."""
    long = '<details name="one"><summary>more</summary><div style="height: 3000px">long</div></details>'
    head = f"<!doctype html><title>A title</title><script>{SCRIPT.read_text(encoding='utf-8')}</script>"
    page.write_text(f'{head}<div class="{inside}">{boxes * long}</div>', encoding="utf-8")
    print_page(page, page.with_suffix(".pdf"))
    pdf = page.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"(A title)" in pdf
    return len(re.findall(rb"/Type /Page\b", pdf))


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
def test_answers_are_shown_and_the_code_of_figures_is_left_out(tmp_path: Path) -> None:
    one = pages_of(tmp_path / "a.html", "quiz")
    assert one >= 2
    assert pages_of(tmp_path / "c.html", "quiz", boxes=3) >= 3 * one - 2
    assert pages_of(tmp_path / "b.html", "tag_hide-input") == 1


@pytest.mark.browser
def test_a_chapter_is_the_running_head_of_its_pages(tmp_path: Path, chromium: str) -> None:
    start, link = '<span id="document-a"></span>', '<a class="headerlink">#</a>'
    chapters = "".join(f"{start}<section><h2>{name}{link}</h2></section>" for name in ("A", 'B "2"'))
    text = f"<title>Book</title><section><h1>Book</h1>{chapters}</section>"
    (tmp_path / "book.html").write_text(text, encoding="utf-8")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium, args=FLAGS).new_page()
        page.goto((tmp_path / "book.html").as_uri())
        page.evaluate(READY)
        said = page.evaluate(
            "[...document.styleSheets].flatMap(sheet => [...sheet.cssRules]).map(rule => rule.cssText)"
        )
        names = page.evaluate("[...document.querySelectorAll('h2')].map(h => getComputedStyle(h.parentElement).page)")
    assert names == ["chapter-0", "chapter-1"]
    heads = [re.search(r'@page ?(\S*) \{ @top-(\w+) \{.*content: (".*?");', rule) for rule in said]
    assert [head and head.groups() for head in heads] == [
        ("", "left", '"Book"'),
        ("chapter-0", "right", '"A"'),
        ("chapter-1", "right", '"B \\"2\\""'),
    ]


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
def test_a_page_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="Chromium did not print"):
        print_page(tmp_path / "page.html", tmp_path / "page.pdf")
    assert list(tmp_path.iterdir()) == []


def test_without_chromium_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BookError, match="install the package `chromium`"):
        print_page(tmp_path / "page.html", tmp_path / "page.pdf")
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").touch()
    with pytest.raises(BookError, match="install the package `chromium`"):
        print_book(tmp_path)


def test_a_book_that_is_not_built_cannot_be_printed(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").touch()
    with pytest.raises(ValueError, match="run `make book` first"):
        print_book(tmp_path)
