"""What a page does: its script in a browser, under a policy that allows no code inside it, and by keyboard."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from subspace_lib.press.figures import COLOURS
from subspace_lib.press.pages import FLAGS
from subspace_lib.press.scripts import hoist_scripts, terms_of, write_scripts
from subspace_lib.press.widgets import FormatExplorer, FrameSlider

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGE = """<!doctype html><html lang="en"><head><link rel="stylesheet" href="_static/book.css">
<script src="_static/book.js"></script><script src="_static/terms.js"></script></head><body>
<article class="bd-article bd-content"><p>The reach of P, and again the reach; an outreach.
<a href="#">Reach</a></p>
<figure><img src="_static/idea.svg" alt="A plane."><figcaption>A plane.</figcaption></figure>
<button onclick="document.title = 'clicked'">A button of the theme</button>
<script>document.title = 'inline'</script>WIDGETS</article></body></html>"""


def luminance(colour):
    channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def in_the_dark(colour, ground):
    """What `invert(1) hue-rotate(180deg)` and `mix-blend-mode: screen` make of a colour, by the formulas of CSS."""
    r, g, b = (1 - c for c in colour)
    grey = 0.213 * r + 0.715 * g + 0.072 * b
    turned = [min(1, max(0, 2 * grey - c)) for c in (r, g, b)]  # half a turn: c goes to 2 grey - c
    return [1 - (1 - c) * (1 - under) for c, under in zip(turned, ground, strict=True)]


def rgb(text):
    return [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]


@pytest.mark.parametrize("colour", [*COLOURS, "#555555"])
def test_lines_are_seen_on_both_grounds(colour):
    assert contrast(rgb(colour), (1, 1, 1)) >= 3
    assert contrast(in_the_dark(rgb(colour), rgb("#121212")), rgb("#121212")) >= 3


def test_terms_are_those_of_the_page_notation():
    terms = dict(terms_of((BOOK / "notation.md").read_text(encoding="utf-8")))
    assert {"Reach", "Family", "layout", "Intrinsic dimension"} <= set(terms)
    assert not re.search(r"[$\\{}`]", "".join(terms.values())), "a meaning is plain text"


def test_scripts_become_files_once(tmp_path):
    page = "<p>on one='x'</p><script>a < b</script><script>a < b</script><script src='x.js'></script>"
    page += '<script type="text/x-config">kept</script><button class="b" onclick="go()">Go</button>'
    moved = hoist_scripts(page, tmp_path, "_static/scripts")
    assert sorted(path.read_text() for path in tmp_path.iterdir())[0] == "a < b"
    assert len(list(tmp_path.iterdir())) == 2
    assert "a < b" not in moved and "onclick" not in moved and "kept" in moved
    assert hoist_scripts(moved, tmp_path, "_static/scripts") == moved


@pytest.fixture(scope="module")
def strict(chromium, serve, tmp_path_factory):
    """A page of a slider, an explorer, a figure and a term, from a server that allows no code inside pages."""
    from playwright.sync_api import sync_playwright

    def draw(value):
        figure, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, value])
        return figure

    folder = tmp_path_factory.mktemp("page")
    static = folder / "_static"
    write_scripts(BOOK, static)
    for name in ("book.css", "idea.svg"):
        static.joinpath(name).write_bytes((BOOK / "_static" / name).read_bytes())
    widgets = FrameSlider(draw, [1, 2, 3], label="slope", alt="a line")._repr_html_()
    widgets += FormatExplorer([[0, 5], [7, 0]])._repr_html_()
    text = hoist_scripts(PAGE.replace("WIDGETS", widgets), static / "scripts", "_static/scripts")
    (folder / "page.html").write_text(text, encoding="utf-8")

    address = serve(folder, {"Content-Security-Policy": "script-src 'self'"})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        wrong = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{address}/page.html", wait_until="load")
        yield page
        assert [text for text in wrong if "favicon" not in text and "404" not in text] == []
        browser.close()


@pytest.mark.browser
def test_what_stood_inside_the_page_still_runs(strict):
    assert strict.title() == "inline"
    strict.get_by_role("button", name="A button of the theme").click()
    assert strict.title() == "clicked"


@pytest.mark.browser
def test_sliders_move_by_keyboard(strict):
    slider = strict.locator(".subspace-slider input")
    slider.focus()
    slider.press("ArrowRight")
    assert strict.locator(".subspace-slider output").inner_text() == "2"
    shown = strict.locator(".subspace-slider img:visible")
    assert shown.count() == 1 and shown.get_attribute("data-label") == "2"
    entry = strict.locator(".subspace-formats details[open] input")
    entry.focus()
    entry.press("ArrowRight")
    assert "entry 1" in entry.get_attribute("aria-valuetext")
    assert strict.locator(".subspace-formats details[open] .marked").count() == 4, "in the matrix and in three arrays"


@pytest.mark.browser
def test_a_term_explains_itself_once_and_by_keyboard(strict):
    terms = strict.locator(".subspace-term", has_text=re.compile("^reach", re.I))
    assert terms.count() == 1, "the first use only, no part of a word, no link"
    tip = terms.get_by_role("tooltip", include_hidden=True)
    assert not tip.is_visible()
    terms.focus()
    assert tip.is_visible() and "share of the weights" in tip.inner_text()
    strict.keyboard.press("Escape")
    assert not tip.is_visible()


@pytest.mark.browser
def test_a_figure_opens_at_full_width_and_closes_by_escape(strict):
    figure = strict.locator("figure img")
    figure.focus()
    figure.press("Enter")
    large = strict.locator("dialog img")
    assert large.bounding_box()["width"] >= 900 and large.get_attribute("alt") == "A plane."
    strict.keyboard.press("Escape")
    strict.locator("dialog").wait_for(state="detached")
    assert figure.evaluate("image => image == document.activeElement")
