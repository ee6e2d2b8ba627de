"""The pages of the book: built from executed chapters, and printed as one PDF."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from subspace_lib.files import replaced_atomically
from subspace_lib.press.chapters import BookError, chapter_names
from subspace_lib.press.execution import running_folder
from subspace_lib.press.scripts import hoist_scripts, write_scripts
from subspace_lib.press.status import CLEAN, status_tables
from subspace_lib.press.takeaway import write_notebooks
from subspace_lib.processes import end, start, tied

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "chrome", "msedge"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
"""Names on the PATH, and where macOS and Windows have theirs."""
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

    While there are chapters that were never executed, warnings are let pass: such a chapter stands as it is written,
    and its figures, to which others refer, are not there.

    Raises
    ------
    BookError
        If there is a warning or an error; the old pages are still there.
    """
    html = root / "_build" / "html"
    started = time.monotonic()
    with running_folder(root / "_build") as folder:
        built = _jupyter_book(root, executed, folder, "html")
        scripts = built / "_static" / "scripts"
        for page in built.rglob("*.html"):
            top = "/".join([".."] * (len(page.relative_to(built).parts) - 1)) or "."
            text = hoist_scripts(page.read_text(encoding="utf-8"), scripts, f"{top}/_static/scripts")
            page.write_text(text, encoding="utf-8")
        if (sources := built / "_sources").is_dir():  # the button of every page that downloads it
            write_notebooks(root, sources)
        if html.exists():
            html.rename(folder / "old")
        built.rename(html)
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
    with running_folder(root / "_build") as folder:
        print_page(_jupyter_book(root, executed, folder, "singlehtml") / "index.html", pdf)
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
    """Chromium, or one of its kind; None if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _browser() -> str:
    executable = find_browser()
    if executable is None:
        raise BookError("a PDF needs Chromium, and there is none on the PATH: install the package `chromium`")
    return executable


def assemble(root: Path, executed: Path, folder: Path) -> bool:
    """Put the book together in a new folder: its pages, and its chapters as executed; whether all of them were."""
    shutil.copytree(root / "book", folder)
    write_scripts(root / "book", folder / "_static")
    write_notebooks(root, folder / CLEAN)
    names = chapter_names(folder)
    there = [name for name in names if (executed / f"{name}.ipynb").is_file()]
    for name in there:
        shutil.copy2(executed / f"{name}.ipynb", folder / f"{name}.ipynb")
    if (status := folder / "status.md").exists():
        tables = status_tables(executed, names, root / "data" / "executions_cuda.json")
        status.write_text(status.read_text(encoding="utf-8") + tables, encoding="utf-8")
    return there == names


def _jupyter_book(root: Path, executed: Path, folder: Path, builder: str) -> Path:
    complete = assemble(root, executed, folder / "book")
    if not complete:
        print("pages ... chapters that were never executed stand as they are written", flush=True)
    command = tied("jupyter_book.cli.main:main", "build", str(folder / "book"), "--config", str(root / "_config.yml"))
    command += ["--path-output", str(folder), "--builder", builder, "-n", "--keep-going", *(["-W"] if complete else [])]
    log = folder / "log"
    with log.open("wb") as output:
        process = start(command, os.environ, output)
    try:
        process.wait()
    finally:
        end([process])
    if process.returncode != 0:
        lines = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8", errors="replace")).strip().splitlines()
        problems = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines
        raise BookError("\n  ".join(["the pages did not build", *problems[-10:]]))
    return folder / "_build" / builder
