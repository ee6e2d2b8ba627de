"""The built book in a real browser with no network: every page is whole, and its sliders move."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest

from subspace_lib.press.pages import FLAGS

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
PAGES = sorted(HTML.glob("*.html")) or [HTML / "index.html"]
LOOK = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  document.querySelectorAll('details').forEach(d => { d.removeAttribute('name'); d.open = true });
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const shown = image => image.getClientRects().length > 0;
  const article = document.querySelector('article') || document.body;
  const images = all('img', article);
  await Promise.all(images.filter(shown).map(i => i.decode().catch(() => {})));
  const words = article.cloneNode(true);
  all('pre, code, mjx-container, script, style', words).forEach(node => node.remove());
  const sliders = all('.subspace-slider').map(slider => {
    const range = slider.querySelector('input[type=range]');
    const state = value => {
      range.value = value;
      range.dispatchEvent(new Event('input', {bubbles: true}));
      return all('img', slider).filter(shown).map(image => image.src);
    };
    return {first: state(range.min), last: state(range.max), label: slider.innerText.trim()};
  });
  return {
    elsewhere: all('script[src], link[href]:not([rel=canonical]), img[src], iframe[src], source[src]')
      .map(node => node.src || node.href).filter(address => /^(https?|wss?):/.test(address)),
    math: all('.math').length,
    unrendered: all('.math').filter(m => !m.querySelector('mjx-container')).map(m => m.innerText),
    wrong: all('mjx-merror').map(node => node.innerText),
    raw: (words.textContent.match(/\\$[^$\\n]+\\$|\\\\\\(.+?\\\\\\)/g) || []),
    mute: images.filter(i => !(i.alt || '').trim()).map(i => i.outerHTML.slice(0, 200)),
    broken: images.filter(i => shown(i) && i.naturalWidth === 0).map(i => i.outerHTML.slice(0, 200)),
    bare: images.filter(i => !i.closest('.subspace-slider'))
      .filter(i => !(i.closest('figure')?.querySelector('figcaption')?.innerText || '').trim())
      .map(i => i.outerHTML.slice(0, 200)),
    sliders: sliders,
    links: all('a[href]').map(a => a.href).filter(address => address.startsWith('file:')),
    names: all('[id], a[name]').map(node => node.id || node.name),
  };
}"""


AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
CHECK = """async theme => {
  const page = document.documentElement.dataset;
  page.theme = page.mode = theme;
  const found = await axe.run(document, {resultTypes: ['violations'], preload: false});
  return found.violations.filter(rule => ['serious', 'critical'].includes(rule.impact))
    .map(rule => [rule.id, ...rule.nodes.map(node => node.html.slice(0, 200) + ' ' + (node.any[0] || {}).message)]);
}"""


@pytest.fixture(scope="module")
def browser(chromium: str, missing: Callable[[str], None]) -> Iterator[Any]:
    """Chromium, and pages to open in it."""
    if not PAGES[0].exists():
        missing("no pages to open: run `make book` first")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visits(browser: Any) -> dict[str, dict[str, Any]]:
    """What the browser found on each page."""
    return {path.name: visit(browser, path) for path in PAGES}


def visit(browser: Any, path: Path) -> dict[str, Any]:
    """Open one page with every request to elsewhere blocked and written down."""
    page = browser.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.route(re.compile("^(?!file:|data:|blob:)"), lambda route: route.abort())
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    page.on("requestfailed", lambda request: errors.append(f"{request.url}: {request.failure}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri(), wait_until="load")
    found: dict[str, Any] = page.evaluate(LOOK)
    page.wait_for_timeout(100)
    page.add_style_tag(content="* {transition: none !important; animation: none !important}")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found["barriers"] = {theme: page.evaluate(CHECK, theme) for theme in ("light", "dark")}
    page.close()
    found["requests"] = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    found["errors"] = errors
    return found


pytestmark = pytest.mark.browser
pages = pytest.mark.parametrize("name", [path.name for path in PAGES])


@pages
def test_page_stands_alone(name: str, visits: dict[str, dict[str, Any]]) -> None:
    assert visits[name]["requests"] == []
    assert visits[name]["elsewhere"] == []
    assert visits[name]["errors"] == []


@pages
def test_math_is_rendered(name: str, visits: dict[str, dict[str, Any]]) -> None:
    assert visits[name]["unrendered"] == []
    assert visits[name]["wrong"] == []
    assert visits[name]["raw"] == []


@pages
def test_pictures_have_alt_text_and_caption(name: str, visits: dict[str, dict[str, Any]]) -> None:
    assert visits[name]["broken"] == []
    assert visits[name]["mute"] == []
    assert visits[name]["bare"] == []


@pages
def test_sliders_move(name: str, visits: dict[str, dict[str, Any]]) -> None:
    for slider in visits[name]["sliders"]:
        assert len(slider["first"]) == len(slider["last"]) == 1, slider["label"]
        assert slider["first"] != slider["last"], slider["label"]


@pages
def test_nobody_is_shut_out(name: str, visits: dict[str, dict[str, Any]]) -> None:
    """No serious finding of axe-core, in either theme, with every answer opened."""
    assert visits[name]["barriers"] == {"light": [], "dark": []}


@pages
def test_links_lead_somewhere(name: str, visits: dict[str, dict[str, Any]]) -> None:
    for address in visits[name]["links"]:
        target, _, anchor = address.removeprefix(HTML.as_uri() + "/").partition("#")
        target = target.partition("?")[0]
        assert (HTML / target).is_file(), address
        if anchor and target in visits:
            assert anchor in visits[target]["names"], address


def test_the_book_has_math_and_sliders(visits: dict[str, dict[str, Any]]) -> None:
    assert visits["index.html"]["math"] > 0
    assert sum(len(found["sliders"]) for found in visits.values()) > 0


@pages
def test_figures_and_answers_are_there_without_javascript(name: str, browser: Any) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((HTML / name).as_uri(), wait_until="load")
    for slider in page.locator(".subspace-slider").all():
        pictures = slider.locator("img").all()
        assert all(picture.is_visible() for picture in pictures), "without a slider all its pictures are shown"
    for picture in page.locator("article img").all():
        if not picture.locator("xpath=ancestor::details").count():
            assert picture.is_visible(), picture.get_attribute("alt")
    for answer in page.locator("article details").all():
        if answer.get_attribute("open") is None:
            answer.locator("summary").first.click()
        assert len(answer.inner_text()) > len(answer.locator("summary").first.inner_text())
    page.context.close()


@pages
def test_no_code_stands_inside_a_page(name: str) -> None:
    """So that a server may send ``script-src 'self'``; tests/test_scripts.py opens a page of such a server."""
    text = (HTML / name).read_text(encoding="utf-8")
    inline = [code for attributes, code in re.findall(r"(?s)<script([^>]*)>(.*?)</script>", text) if code.strip()]
    assert inline == []
    assert re.findall(r"<[a-z]+\b[^>]* on[a-z]+=", re.sub(r"(?s)<pre.*?</pre>", "", text)) == []


def test_no_formula_is_a_tab_stop(browser: Any) -> None:
    page = browser.new_page()
    page.goto((HTML / "notation.html").as_uri(), wait_until="load")
    page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container[tabindex]").count() == 0
    page.close()


def test_search_needs_no_network(browser: Any) -> None:
    page = browser.new_page()
    page.route(re.compile("^(?!file:|data:|blob:)"), lambda route: route.abort())
    page.goto((HTML / "search.html").as_uri() + "?q=orthonormal")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a").count() > 1
    page.close()
