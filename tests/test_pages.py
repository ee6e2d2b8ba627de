"""The built book in a real browser with no network: every page is whole, and its sliders move."""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
import yaml

from subspace_lib.press.pages import FLAGS

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
PAGES = sorted(HTML.glob("*.html")) or [HTML / "index.html"]
SLIDES = sorted(HTML.glob("slides/*.html"))
LOOK = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  document.querySelectorAll('details').forEach(d => { d.removeAttribute('name'); d.open = true });
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const shown = image => image.getClientRects().length > 0;
  const article = document.querySelector('article') || document.body;
  const images = all('img', article);
  await Promise.all(images.filter(shown).map(i => i.decode().catch(() => {})));
  const words = article.cloneNode(true);
  all('pre, code, mjx-container, noscript, script, style', words).forEach(node => node.remove());
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
    unnamed: all('article .pst-scrollable-table-container > table')
      .filter(t => !(t.caption?.innerText || '').trim() && !document.getElementById(t.getAttribute('aria-labelledby')))
      .map(t => t.outerHTML.slice(0, 200)),
    unsigned: all('article :is(p, summary)').filter(one => one.textContent.trim().startsWith('Deeper:')
      && !one.querySelector('.sign') && !one.closest('.kind.deeper')).map(one => one.outerHTML.slice(0, 200)),
    traced: all('a[target=_blank]').filter(a => !a.relList.contains('noopener')).map(a => a.href),
    headless: all('article table.table').filter(t => !t.querySelector('thead th[scope=col]')
      || [...t.tBodies].some(body => [...body.rows].some(row => !row.querySelector('th[scope=row]'))))
      .map(t => t.outerHTML.slice(0, 200)),
  };
}"""


AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
BARRIERS = """async () => {
  // Most nodes of a page are the words of its code, which differ in nothing but their class: one of each will do.
  const classes = new Set();
  document.querySelectorAll('pre span[class]').forEach(word => {
    const kind = `${word.className} in ${word.closest('.cell_input, .cell_output, dl')?.className}`;
    if (word.firstElementChild) return;
    if (classes.has(kind)) word.replaceWith(word.textContent);
    else classes.add(kind);
  });
  const grave = found => found.violations.filter(rule => ['serious', 'critical'].includes(rule.impact))
    .map(rule => [rule.id, ...rule.nodes.map(node => node.html.slice(0, 200) + ' ' + (node.any[0] || {}).message)]);
  const experimental = axe.getRules(['experimental']).map(rule => [rule.ruleId, {enabled: true}]);
  const rules = {...Object.fromEntries(experimental), 'color-contrast': {enabled: false}};
  const found = {shape: grave(await axe.run(document, {rules, resultTypes: ['violations'], preload: false}))};
  // Contrast follows from the colours of text and ground and from the size: one text of each kind will do.
  const kinds = () => {
    const seen = new Set(), style = getComputedStyle;
    return [...document.querySelectorAll('body *')].filter(node => {
      if (![...node.childNodes].some(child => child.nodeType == 3 && child.data.trim())) return false;
      let ground = node;
      while (ground.parentElement && / 0\\)$/.test(style(ground).backgroundColor)) ground = ground.parentElement;
      const {color, fontSize, fontWeight, opacity} = style(node);
      const near = node.closest('.cell, aside, nav, table, figure, dialog, mjx-container')?.tagName;
      const kind = [color, fontSize, fontWeight, opacity, style(ground).backgroundColor, near].join();
      return !seen.has(kind) && seen.add(kind);
    });
  };
  const page = document.documentElement.dataset;
  for (const theme of ['light', 'dark']) {
    page.theme = page.mode = theme;
    found[theme] = grave(await axe.run({include: kinds()}, {runOnly: ['color-contrast'], resultTypes: ['violations']}));
  }
  return found;
}"""
CUT = """() => [...document.querySelectorAll('article :is(pre, .pst-scrollable-table-container)')]
  .filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText.slice(0, 200))"""
PAPER = """() => {
  dispatchEvent(new Event('beforeprint'));
  const closed = [...document.querySelectorAll('details:not([open])')]
    .filter(one => !one.closest('.tag_hide-input, .tag_setup'));
  const shown = [...document.querySelectorAll('details.hide > summary')].filter(one => one.getClientRects().length);
  return [...closed, ...shown].map(one => one.innerText.slice(0, 200)); // what is folded, and what only says so
}"""
WITHOUT_SCRIPTS = """() => {
  document.querySelectorAll('details').forEach(d => { d.removeAttribute('name'); d.open = true });
  const seen = node => node.getClientRects().length > 0;
  const failing = (selector, fails) => [...document.querySelectorAll(selector)].filter(fails)
    .map(node => node.outerHTML.slice(0, 200));
  return {
    hidden: failing('article img', image => !seen(image)),
    raw: failing('article .math', m => seen(m) && (!m.querySelector('math') || seen(m.querySelector('.tex')))),
    colourless: failing('.bd-header-article', bar => getComputedStyle(bar).backgroundColor.endsWith(' 0)')),
    empty: failing('article details', d => d.innerText.length <= d.querySelector('summary').innerText.length),
  };
}"""
WIDTHS = (320, 390, 768, 1280, 1600)  # pixels; 320 is also what 1280 are at four times the size


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
    # axe passes over what stands on a gradient, which here is the shadow at the side of what goes on
    page.add_style_tag(content="* {transition: none !important; animation: none !important}")
    page.add_style_tag(
        content="pre, .pst-scrollable-table-container, mjx-container {background-image: none !important}"
    )
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found["barriers"] = page.evaluate(BARRIERS)
    found["wide"] = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found["wide"][width] = page.evaluate("document.documentElement.scrollWidth")
        if width == 1280:
            found["scrolled"] = page.evaluate(CUT)
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 between its margins
    page.emulate_media(media="print")
    found["closed on paper"] = page.evaluate(PAPER)
    found["cut on paper"] = page.evaluate(CUT)
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
    """No serious finding of axe-core and its experimental rules, in either theme, with every answer opened."""
    assert visits[name]["barriers"] == {"shape": [], "light": [], "dark": []}


@pages
def test_nothing_is_cut(name: str, visits: dict[str, dict[str, Any]]) -> None:
    """No page moves sideways, no code, output or table does on a laptop, and paper shows all of both, answers too."""
    assert {width: found for width, found in visits[name]["wide"].items() if found > width} == {}
    assert visits[name]["scrolled"] == []
    assert visits[name]["closed on paper"] == []
    assert visits[name]["cut on paper"] == []


@pages
def test_tables_links_and_names_are_as_they_should(name: str, visits: dict[str, dict[str, Any]]) -> None:
    assert visits[name]["headless"] == []
    assert visits[name]["unnamed"] == [], "begin the paragraph before a table in bold: it becomes its caption"
    assert visits[name]["unsigned"] == []
    assert visits[name]["traced"] == []
    names = visits[name]["names"]
    assert sorted({one for one in names if names.count(one) > 1}) == []


@pages
def test_a_search_result_and_a_shared_link_show_the_page(name: str) -> None:
    text = (HTML / name).read_text(encoding="utf-8")
    title = re.findall(r"<title>(.*?)</title>", text)
    assert len(title) == 1 and len(html.unescape(title[0])) <= 60
    assert f'<link rel="canonical" href="{ADDRESS}{name}" />' in text
    assert '<link rel="icon" href="_static/mark.svg"/>' in text
    if name in ("search.html", "genindex.html"):
        return
    assert f"<loc>{ADDRESS}{name}</loc>" in (HTML / "sitemap.xml").read_text(encoding="utf-8")
    about = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', text))
    assert 40 <= len(about["description"]) <= 160 and about["og:description"] == about["description"]
    card = HTML / about["og:image"].removeprefix(ADDRESS)
    assert card.read_bytes()[16:24] == (1200).to_bytes(4, "big") + (630).to_bytes(4, "big")
    assert card.stat().st_size < 300_000


@pytest.mark.parametrize("path", SLIDES, ids=lambda path: path.stem)
def test_slides_shut_nobody_out_and_print_one_to_a_sheet(path: Path, browser: Any) -> None:
    found = visit(browser, path)
    assert found["requests"] == found["elsewhere"] == found["errors"] == found["broken"] == found["mute"] == []
    assert found["barriers"] == {"shape": [], "light": [], "dark": []}
    assert {width: wide for width, wide in found["wide"].items() if wide > width} == {}
    page = browser.new_page()
    page.goto(path.as_uri(), wait_until="load")
    sheets = len(re.findall(rb"/Type /Page\b", page.pdf(prefer_css_page_size=True)))
    assert sheets == 1 + page.locator("section").count()  # the title has its own
    page.close()


def test_titles_differ() -> None:
    titles = [re.search(r"<title>(.*?)</title>", path.read_text(encoding="utf-8"))[1] for path in PAGES]  # type: ignore[index]
    assert len(set(titles)) == len(titles)


def test_the_button_with_the_focus_is_seen(browser: Any) -> None:
    page = browser.new_page()
    page.goto((HTML / "notation.html").as_uri(), wait_until="load")
    look = "(at => at.closest('.bd-header-article button') && getComputedStyle(at).outline)(document.activeElement)"
    looks = []
    for _ in range(100):
        page.keyboard.press("Tab")
        looks.append(page.evaluate(look))
    focused = [one for one in looks if one]
    assert len(focused) >= 5 and all("solid 3px" in one for one in focused)
    page.close()


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
def test_figures_formulas_and_answers_are_there_without_javascript(name: str, browser: Any) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((HTML / name).as_uri(), wait_until="load")
    assert page.evaluate(WITHOUT_SCRIPTS) == {"hidden": [], "raw": [], "colourless": [], "empty": []}
    page.context.close()


@pages
def test_no_code_stands_inside_a_page(name: str) -> None:
    """So that a server may send ``script-src 'self'``; tests/test_scripts.py opens a page of such a server."""
    text = (HTML / name).read_text(encoding="utf-8")
    inline = [code for attributes, code in re.findall(r"(?s)<script([^>]*)>(.*?)</script>", text) if code.strip()]
    assert inline == []
    assert re.findall(r"<[a-z]+\b[^>]* on[a-z]+=", re.sub(r"(?s)<pre.*?</pre>", "", text)) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_reader_can_train_without_scrolling(browser: Any, width: int, height: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto((HTML / "index.html").as_uri(), wait_until="load")
    button = page.get_by_role("button", name="Train", exact=True)
    button.wait_for()
    place = button.bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= width and place["y"] + place["height"] <= height
    button.click()
    page.wait_for_selector("[data-state=done]", timeout=60_000)
    context.close()


@pytest.mark.parametrize("part", ["", "::before", "::after"])
def test_nothing_moves_for_readers_who_asked_for_that(browser: Any, part: str) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto((HTML / "notation.html").as_uri(), wait_until="load")
    durations = "part => [...document.querySelectorAll('*')].map(one => getComputedStyle(one, part).transitionDuration)"
    assert set(page.evaluate(durations, part)) <= {"0s", ""}
    context.close()


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
