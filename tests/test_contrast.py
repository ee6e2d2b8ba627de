"""Figures by day and by night: on either ground lines keep a contrast of 3, and text one of 4.5."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from subspace_lib.press.figures import COLOURS, QUIET, use_style
from subspace_lib.press.pages import FLAGS

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
PAGES = sorted(HTML.glob("*.html")) or [HTML / "index.html"]
LINE, TEXT = 3, 4.5
WHITE = np.ones(3)
NIGHT = np.full(3, 0x12) / 255  # a test compares it with what a browser shows
TURNED = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
"""``hue-rotate(180deg)``, as the specification of CSS filters has it."""
KINDS = re.compile("text|patch|line2d|.*LineCollection|Line3D.*|Path(3D)?Collection|QuadContourSet")
"""What matplotlib draws in lines or letters; a patch is a line if it is not filled."""
AXES = {"xtick", "ytick"}
GRID = 0.15  # what differs less from white in a picture of pixels is its grid, or the edge of a line


def by_night(colour: np.ndarray) -> np.ndarray:
    """What book.css makes of a colour on a dark page: lightness turned over, then laid over the ground as light."""
    return 1 - (1 - np.clip((1 - colour) @ TURNED.T, 0, 1)) * (1 - NIGHT)


def luminance(colour: np.ndarray) -> np.ndarray:
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722] + 0.05


def contrast(colour: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Of colours to a ground, the lower of day and night."""
    ratios = [luminance(colour) / luminance(ground), luminance(by_night(colour)) / luminance(by_night(ground))]
    return np.min([np.maximum(ratio, 1 / ratio) for ratio in ratios], axis=0)


def faint(figure: bytes) -> list[str]:
    """What in a figure has too little contrast."""
    return faint_in_png(figure) if figure.startswith(b"\x89PNG") else faint_in_svg(figure)


def faint_in_svg(figure: bytes) -> list[str]:
    """Lines, markers and text whose colours are too near to what they stand on. Grids and areas may be pale."""
    areas: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # two corners and a colour each
    found = set()

    def look(node: ET.Element, names: tuple[str, ...], style: dict[str, str], opacity: float, at: np.ndarray) -> None:
        if node.tag.endswith(("}defs", "}metadata")):
            return
        names += tuple(re.findall(r"(.+)_\d+$", node.get("id", "")))
        own = dict(re.findall(r"([\w-]+): *([^;]+)", node.get("style", "")))
        style, opacity = style | own, opacity * float(own.get("opacity", 1))
        if not at.any() and (place := re.match(r"translate\((\S+) (\S+)\)", node.get("transform", ""))):
            at = np.array(place.groups(), float)  # where a text begins
        kind = next((name for name in reversed(names) if KINDS.fullmatch(name)), "")
        if kind and node.tag.endswith(("}path", "}use")):
            ground = WHITE
            if kind == "text" and not AXES & set(names):
                under = [colour for low, high, colour in areas if (low <= at).all() and (at <= high).all()]
                ground = [WHITE, *under][-1]
            inks = inks_of(style, opacity, ground)
            best = max((contrast(ink, ground) for ink in inks.values()), default=np.inf)
            if kind == "patch" and style.get("fill") != "none":
                corners = np.array(re.findall(r"([-\d.]+) ([-\d.]+)", node.get("d", "")), float)
                areas.append((corners.min(0), corners.max(0), inks.get("fill", WHITE)))
            elif best < (TEXT if kind == "text" else LINE) and not is_grid(names, style):
                found.add(f"{'/'.join(names)}: {style}, opacity {opacity:g}, contrast {best:.2f}")
        for child in node:
            look(child, names, style, opacity, at)

    look(ET.fromstring(figure), (), {}, 1, np.zeros(2))
    return sorted(found)


def is_grid(names: tuple[str, ...], style: dict[str, str]) -> bool:
    """The style's own grid, whose lines end at numbers that say the same."""
    return "grid3d" in names or (bool(AXES & set(names)) and style.get("stroke-opacity") == "0.3")


def inks_of(style: dict[str, str], opacity: float, ground: np.ndarray) -> dict[str, np.ndarray]:
    """The colours of fill and stroke, laid over a ground."""
    inks = {}
    for part, default in (("fill", "#000000"), ("stroke", "none")):
        code, share = style.get(part, default), opacity * float(style.get(f"{part}-opacity", 1))
        if code.startswith("#") and share:
            inks[part] = share * np.frombuffer(bytes.fromhex(code[1:]), np.uint8) / 255 + (1 - share) * ground
    return inks


def faint_in_png(figure: bytes) -> list[str]:
    """What is thin and nowhere dark within four pixels: lines, since areas may be pale, and the edges of lines are."""
    pixels = np.asarray(Image.open(io.BytesIO(figure)).convert("RGB")) / 255
    colours, which = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    contrasts = contrast(colours, WHITE)[which.ravel()].reshape(pixels.shape[:2])
    ink = (1 - pixels).max(-1) > GRID
    thin = ink & ~around(around(ink, 2, np.min), 2, np.max)
    lost = thin & (around(contrasts, 4, np.max) < LINE)
    return [f"{lost.sum()} of {thin.sum()} pixels of lines"] if lost.sum() > 0.1 * thin.sum() else []


def around(values: np.ndarray, reach: int, of: Callable[..., np.ndarray]) -> np.ndarray:
    """The least or the largest of the pixels near each."""
    for axis in (0, 1):
        wide = np.pad(values, [(reach, reach) if one == axis else (0, 0) for one in (0, 1)], mode="edge")
        values = of(sliding_window_view(wide, 2 * reach + 1, axis), axis=2)
    return values


def drawn(kind: str, line: str, word: str, **more: float) -> bytes:
    """A line, and a word on a dark bar."""
    use_style()
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1, 2], [0, 2, 1], color=line, marker="", **more)
    ax.bar(1, 1, color=COLOURS[0])
    ax.text(1, 0.5, "word", color=word, va="center")
    ax.set_xlabel("d")
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind)
    plt.close(fig)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["svg", "png"])
@pytest.mark.parametrize("line", [*COLOURS, QUIET])
def test_the_colours_of_the_book_are_seen(kind: str, line: str) -> None:
    assert faint(drawn(kind, line, "white")) == []


@pytest.mark.parametrize("kind", ["svg", "png"])
@pytest.mark.parametrize(("line", "alpha"), [("#bbbbbb", 1), ("#009e73", 0.7), ("#ffff00", 1)])
def test_a_faint_line_is_found(kind: str, line: str, alpha: float) -> None:
    [found] = faint(drawn(kind, line, "white", alpha=alpha))
    assert "line2d" in found or "pixels of lines" in found


@pytest.mark.parametrize("word", ["black", COLOURS[1]])
def test_a_faint_word_on_its_ground_is_found(word: str) -> None:
    [found] = faint(drawn("svg", "black", word))
    assert "/text" in found


@pytest.mark.parametrize(("colour", "by_day"), [("#767676", 4.54), ("#ff0000", 4.0), ("#000000", 21)])
def test_contrast_is_what_others_publish(colour: str, by_day: float) -> None:
    [ink] = inks_of({"fill": colour}, 1, WHITE).values()
    assert luminance(WHITE) / luminance(ink) == pytest.approx(by_day, abs=0.005)


@pytest.mark.browser
def test_night_is_what_a_browser_shows(chromium: str, missing: Callable[[str], None]) -> None:
    from playwright.sync_api import sync_playwright

    if not PAGES[0].exists():
        missing("no pages to open: run `make book` first")
    colours = np.array(
        [[255, 255, 255], [0, 0, 0], [0, 114, 178], [213, 94, 0], [133, 133, 133], [255, 255, 0]], np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(colours[None]).resize((len(colours) * 20, 20), Image.Resampling.NEAREST).save(buffer, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(color_scheme="dark")
        page.goto((HTML / "notation.html").as_uri(), wait_until="load")
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        page.evaluate(
            "src => document.querySelector('.bd-article').insertAdjacentHTML('afterbegin',"
            "`<figure><img id='painted' src='${src}' style='width:120px;height:20px;max-width:none'></figure>`)",
            picture,
        )
        shown = Image.open(io.BytesIO(page.locator("#painted").screenshot())).convert("RGB")
        browser.close()
    seen = np.array([shown.getpixel((20 * place + 10, 10)) for place in range(len(colours))])
    assert np.abs(seen - 255 * by_night(colours / 255)).max() <= 2


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_figures_of_a_page_are_seen_by_day_and_by_night(page: Path, missing: Callable[[str], None]) -> None:
    if not page.exists():
        missing("no pages to look at: run `make book` first")
    text = page.read_text(encoding="utf-8")
    frames = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    files = set(re.findall(r'src="(_images/[^"]+\.(?:svg|png))"', text))
    figures = {f"frame {number} of the page's sliders": base64.b64decode(one) for number, one in enumerate(frames)}
    figures |= {name: (HTML / name).read_bytes() for name in files}
    assert {name: found for name, figure in figures.items() if (found := faint(figure))} == {}
