"""The pages of the book: built from executed chapters, and printed as one PDF."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from subspace_lib.files import replaced_atomically
from subspace_lib.press.chapters import BookError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PRINT_TIMEOUT = 1200  # seconds

PRINTED = """
* { animation: none !important; transition: none !important }
span[id^="document-"] { display: block; break-before: page }
h2, h3, h4 { break-after: avoid }
figure, .cell_output img, tr, mjx-container[display="true"] { break-inside: avoid }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere }
pre, .cell, .cell > *, [class*="highlight"] { overflow: visible !important; break-inside: auto !important }
.cell_input, .cell_output, div[class*="highlight"] { display: block !important }
.subspace-slider input, .subspace-formats input, .tag_hide-input > details:not([open]), .tag_setup, button,
details.hide > summary { display: none }
"""
OPEN = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  document.documentElement.dataset.theme = document.documentElement.dataset.mode = 'light';
  document.querySelectorAll('details').forEach(d => {
    d.removeAttribute('name'); // of those with one name, only one could be open
    d.open = !d.closest('.tag_hide-input, .tag_setup');
  });
}"""
NUMBER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def build_pages(root: Path, executed: Path) -> Path:
    """Build the pages strictly, and put them in the place of the old ones only if that succeeds.

    Raises
    ------
    BookError
        If there is a warning or an error; the old pages are still there.
    """
    html, old = root / "_build" / "html", root / "_build" / "html.old"
    started = time.monotonic()
    with TemporaryDirectory(prefix="running-", dir=root / "_build") as folder:
        built = _jupyter_book(root, executed, Path(folder), "html")
        shutil.rmtree(old, ignore_errors=True)
        if html.exists():
            html.rename(old)
        built.rename(html)
        shutil.rmtree(old, ignore_errors=True)
    index = html / "index.html"
    print(f"pages ... {time.monotonic() - started:.0f} s\n\nThe book is in {index}", flush=True)
    print(f"Open that file in a browser, or: python -m webbrowser {index.as_uri()}", flush=True)
    return index


def print_book(root: Path) -> Path:
    """Print the chapters executed last as one PDF: answers and solutions shown, the code of figures left out.

    Raises
    ------
    ValueError
        If there is no built book.
    BookError
        If there is no Chromium, or the pages do not build.
    OSError
        If the file cannot be written.
    """
    executed, pdf = root / "_build" / "executed", root / "_build" / "training-in-parameter-subspaces.pdf"
    if not (root / "_build" / "html" / "index.html").is_file():
        raise ValueError(f"no built book in {root / '_build' / 'html'}; run `make book` first")
    _browser()
    started = time.monotonic()
    with TemporaryDirectory(prefix="running-", dir=root / "_build") as folder:
        print_page(_jupyter_book(root, executed, Path(folder), "singlehtml") / "index.html", pdf)
    print(f"pdf ... {time.monotonic() - started:.0f} s\n\nThe book is in {pdf}", flush=True)
    return pdf


def print_page(page: Path, pdf: Path) -> None:
    """Print one page with Chromium: tagged, with an outline and page numbers.

    Raises
    ------
    BookError
        If there is no Chromium, or it cannot print the page.
    OSError
        If the file cannot be written.
    """
    from playwright.sync_api import Error, sync_playwright

    executable = _browser()
    with sync_playwright() as playwright, replaced_atomically(pdf) as temporary:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
            opened = browser.new_page()
            opened.set_default_timeout(1000 * PRINT_TIMEOUT)
            opened.goto(page.as_uri(), wait_until="load")
            opened.evaluate(OPEN)
            opened.add_style_tag(content=PRINTED)
            margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
            opened.pdf(
                path=temporary,
                format="A4",
                margin=margin,  # type: ignore[arg-type]
                scale=0.8,
                outline=True,
                tagged=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=NUMBER,
            )
            browser.close()
        except Error as error:
            raise BookError(f"Chromium did not print {page}: {str(error).splitlines()[0]}") from None


def find_browser() -> str | None:
    """Chromium on the PATH; None if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _browser() -> str:
    executable = find_browser()
    if executable is None:
        raise BookError("a PDF needs Chromium, and there is none on the PATH: install the package `chromium`")
    return executable


def _jupyter_book(root: Path, executed: Path, folder: Path, builder: str) -> Path:
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(executed)]
    command += ["--config", str(root / "_config.yml"), "--path-output", str(folder)]
    command += ["--builder", builder, "-W", "-n", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr).strip().splitlines()
        problems = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines
        raise BookError("\n  ".join(["the pages did not build", *problems[-10:]]))
    return folder / "_build" / builder
