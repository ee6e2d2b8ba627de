"""What Sphinx leaves to be done in a page: headings of tables, formulas that need no JavaScript, names of sections."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from functools import cache

KINDS = "predict-first|a-misconception|a-pitfall|exercise(?=-)|laboratory"
TABLE = r'\s*((?:<div class="pst-scrollable-table-container">)?<table\b[^>]*'
FORMULA = r'<span class="math [^>]*><span class="tex">[^<]*</span><noscript>(?:(?!</noscript>).)*</noscript></span>'
MATHML = ".tex { display: none } div.math { margin: 1em 0 } div.math > noscript { flex: 1 }"
PLAIN = f"<noscript><style>{MATHML}</style></noscript></head>"


def finish(page: str) -> str:
    """A page as it is to be read.

    - The first cell of each row of a table is its heading, and headings say what they head. A paragraph before a table
      that begins in bold is the table's caption; a heading right before one is its name.
    - A figure outside the numbered chapters has no number: on the scorecard "figure 3" is one of the study.
    - Each formula stands there twice, as TeX and, where no script runs, as MathML; a comma after it stays with it.
    - Each of six kinds of sections is marked, so that it looks alike in every chapter: ``KINDS``, and *Deeper*, which
      a cell that is folded may be too.
    - What can be pressed is called what stands on it, and the column at the left is a region.
    - Where no script runs, a page has the colours of the day.
    - A page that opens elsewhere is not told where its reader came from.

    Examples
    --------
    >>> finish('<tr class="row-odd"><td>d</td><td>5</td></tr>')
    '<tr class="row-odd"><th scope="row">d</th><td>5</td></tr>'
    >>> finish('<span class="caption-number">Fig. 3 </span>Ours; <span class="caption-number">Fig. 3.2 </span>LeNet')
    'Ours; <span class="caption-number">Fig. 3.2 </span>LeNet'
    """
    page = re.sub(r'(?s)(<tr class="row-\w+">\s*)<td([^>]*)>(.*?)</td>', r'\1<th scope="row"\2>\3</th>', page)
    page = re.sub(r'<th class="head', '<th scope="col" class="head', page)
    page = re.sub(rf"<p>(<strong>(?:(?!</?p>).)*)</p>{TABLE}>)", r"\2<caption>\1</caption>", page, flags=re.S)
    heading = r'(<section [^>]*\bid="([\w-]+)">\s*<h\d)(>.*</h\d>)'
    page = re.sub(rf"{heading}{TABLE})>", r'\1 id="\2-is"\3\4 aria-labelledby="\2-is">', page)
    page = re.sub(r'<span class="caption-number">Fig\. \d+ </span>', "", page)
    page = re.sub(r"(?s)(<(?:span|div) class=\"math [^>]*>)(.*?)(</(?:span|div)>)", _twice, page)
    page = re.sub(rf"({FORMULA})([.,;:?!)]+)", r'<span class="kept">\1\2</span>', page, flags=re.S)
    page = re.sub(rf'<section id="({KINDS})', r'<section class="kind \1" id="\1', page)
    page = re.sub(r"<details>(\s*<summary>Deeper:)", r'<details class="kind deeper">\1', page)
    page = re.sub(r'(<p class="\w+ admonition-title">|<p><em>)Deeper:', r'\1<span class="sign"></span>Deeper:', page)
    page = page.replace('search-button__button" title="Search" aria-label="Search"', 'search-button__button"')
    page = page.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    page = page.replace(
        '<div class="bd-sidebar-primary', '<div role="region" aria-label="The book" class="bd-sidebar-primary'
    )
    page = page.replace('data-theme="auto"', 'data-theme="light"', 1)  # until the theme's script says otherwise
    page = re.sub(r'target="_blank"(?![^>]*\brel=)', 'target="_blank" rel="noopener"', page)
    if page.count('id="search-input"') > 1:  # in the overlay of every page, and on the page that shows what was found
        page = page.replace('id="search-input"', 'id="search-overlay-input"', 1)
    return page.replace("</head>", PLAIN, 1) if "<noscript><math" in page else page


def sitemap(address: str, pages: Iterable[str]) -> str:
    """The addresses of the pages, for search engines.

    Examples
    --------
    >>> print(sitemap("https://x.org/", ["a.html", "index.html"]))
    <?xml version="1.0" encoding="UTF-8"?>
    <urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
    <url><loc>https://x.org/a.html</loc></url>
    <url><loc>https://x.org/index.html</loc></url>
    </urlset>
    """
    places = (f"<url><loc>{html.escape(address + page)}</loc></url>" for page in pages)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
    return "\n".join([head, *places, "</urlset>"])


def _twice(found: re.Match[str]) -> str:
    """A formula as TeX, which MathJax draws, and as MathML."""
    tex = html.unescape(found[2]).strip()
    if not tex.startswith(("\\(", "\\[")):
        return found[0]
    display = "inline" if tex.startswith("\\(") else "block"
    mathml = mathml_of(tex[2:-2].strip(), display)
    return f'{found[1]}<span class="tex">{found[2]}</span><noscript>{mathml}</noscript>{found[3]}'


@cache
def mathml_of(tex: str, display: str) -> str:
    """A formula as MathML, ``inline`` or a ``block``."""
    from latex2mathml.converter import convert

    mathml = str(convert(tex, display=display))
    return re.sub(r"</mn><mrow><mo>(?:,|&#x0002C;)</mo></mrow><mn>", ",", mathml)  # 2{,}000 is one number
