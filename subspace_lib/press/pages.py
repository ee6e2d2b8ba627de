"""The pages of the book: built from executed chapters, and printed as one PDF."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

from filelock import FileLock

from subspace_lib.files import read_text, replaced_atomically
from subspace_lib.press.cards import add_card
from subspace_lib.press.chapters import BookError, book_of, chapter_names, configuration, read_notebook
from subspace_lib.press.execution import running_folder
from subspace_lib.press.markup import finish, sitemap
from subspace_lib.press.scripts import hoist_scripts, write_scripts
from subspace_lib.press.slides import write_slides
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
@page { @bottom-center { content: counter(page); font: 8pt sans-serif } }
* { animation: none !important; transition: none !important }
span[id^="document-"] { display: block; break-before: page }
.cell_input pre { break-inside: avoid !important }
"""
READY = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  document.documentElement.dataset.theme = document.documentElement.dataset.mode = 'light';
  const style = document.createElement('style');
  const head = (page, place, said) =>
    `@page ${page} { @top-${place} { content: ${JSON.stringify(said)}; font: 8pt sans-serif } }`;
  style.textContent = head('', 'left', document.title);
  document.querySelectorAll('span[id^="document-"] + section').forEach((chapter, i) => {
    const heading = chapter.querySelector('h1, h2, h3').cloneNode(true);
    heading.querySelectorAll('.headerlink').forEach(link => link.remove());
    chapter.style.page = `chapter-${i}`;
    style.textContent += head(`chapter-${i}`, 'right', heading.textContent.trim());
  });
  document.head.append(style);
}"""


def build_pages(root: Path, executed: Path) -> Path:
    """Build the pages strictly, and put them in the place of the old ones only if that succeeds.

    While there are chapters that were never executed, warnings are let pass: such a chapter stands as it is written,
    and its figures, to which others refer, are not there.

    Raises
    ------
    BookError
        If there is a warning or an error; the old pages are still there.
    """
    html = Path(os.path.realpath(root / "_build" / "html"))
    started = time.monotonic()
    with running_folder(html.parent) as folder:
        built = _jupyter_book(root, executed, folder, "html")
        finish_pages(built, configuration(root).get("html", {}).get("baseurl", ""))
        if (sources := built / "_sources").is_dir():  # the button of every page that downloads it
            write_notebooks(root, sources)
        if (root / "book" / "instructors.md").is_file():
            write_slides(root / "book", executed, built / "slides")
        _exchange(html, built, folder / "old")
    index = root / "_build" / "html" / "index.html"
    print(f"pages ... {time.monotonic() - started:.0f} s\n\nThe book is in {index}", flush=True)
    print(f"Open that file in a browser, or: python -m webbrowser {index.as_uri()}", flush=True)
    return index


def _exchange(there: Path, new: Path, aside: Path) -> None:
    """Put a new folder in the place of what is there, which moves aside; or leave it. One build after the other."""
    try:
        with FileLock(there.parent / ".running.lock"):
            if there.exists():
                there.rename(aside)
            try:
                new.rename(there)
            except OSError:
                if aside.exists():
                    aside.rename(there)
                raise
    except OSError as error:
        raise BookError(
            f"the new pages could not take the place of {there} ({error.strerror}), which is as it was; "
            "close what uses it, or move it away, and build again"
        ) from None


def finish_pages(built: Path, address: str) -> None:
    """Do to the pages what Sphinx leaves to be done, and list them for search engines.

    Parameters
    ----------
    built : Path
        Folder of the pages.
    address : str
        Where the book is published.
    """
    scripts = built / "_static" / "scripts"
    names = []
    for page in sorted(built.rglob("*.html")):
        name = page.relative_to(built).as_posix()
        text = finish(page.read_text(encoding="utf-8"))
        top = "/".join([".."] * name.count("/")) or "."
        page.write_text(hoist_scripts(text, scripts, f"{top}/_static/scripts"), encoding="utf-8")
        if "/" not in name and name not in ("search.html", "genindex.html"):
            names.append(name)
    built.joinpath("sitemap.xml").write_text(sitemap(address, names), encoding="utf-8")


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
    check_built(root)
    _browser()
    started = time.monotonic()
    with running_folder(root / "_build") as folder:
        page = _jupyter_book(root, executed, folder, "singlehtml") / "index.html"
        page.write_text(finish(page.read_text(encoding="utf-8")), encoding="utf-8")
        print_page(page, pdf)
    print(f"pdf ... {time.monotonic() - started:.0f} s\n\nThe book is in {pdf}", flush=True)
    return pdf


def check_built(root: Path) -> None:
    """Refuse a folder that is no checkout with a built book."""
    book_of(root)
    if not (root / "_build" / "html" / "index.html").is_file():
        raise ValueError(f"no built book in {root / '_build' / 'html'}; run `make book` first")


def print_page(page: Path, pdf: Path) -> None:
    """Print one page with Chromium: tagged, with an outline, page numbers and the chapter's title as running head.

    What is open and what is left out on paper is the page's own business: ``book.js`` and ``book.css``.

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
            opened.evaluate(READY)
            opened.add_style_tag(content=PRINTED)
            margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
            opened.pdf(
                path=temporary,
                format="A4",
                margin=margin,  # type: ignore[arg-type]
                scale=0.8,
                outline=True,
                tagged=True,
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
    shutil.copytree(root / "book", folder, ignore_dangling_symlinks=True)  # as an editor leaves beside an open file
    write_scripts(root / "book", folder / "_static")
    write_notebooks(root, folder / CLEAN)
    names = chapter_names(folder)
    there = [name for name in names if (executed / f"{name}.ipynb").is_file()]
    for name in there:
        shutil.copy2(executed / f"{name}.ipynb", folder / f"{name}.ipynb")
    if (mark := folder / "_static" / "mark.svg").exists():
        title = configuration(root, "title")["title"]
        for name in names:
            chapter = folder / f"{name}.ipynb"
            notebook = read_notebook((executed if name in there else folder) / f"{name}.ipynb")
            add_card(notebook, title, folder / "_static" / "cards" / f"{name}.png", mark)
            chapter.write_text(json.dumps(notebook), encoding="utf-8")
    if (status := folder / "status.md").exists():
        tables = status_tables(executed, names, root / "data" / "executions_cuda.json")
        status.write_text(read_text(status) + tables, encoding="utf-8")
    return there == names


def _jupyter_book(root: Path, executed: Path, folder: Path, builder: str) -> Path:
    complete = assemble(root, executed, folder / "book")
    command = tied("jupyter_book.cli.main:main", "build", str(folder / "book"), "--config", str(root / "_config.yml"))
    run_builder([*command, "--path-output", str(folder), "--builder", builder, "-n"], complete, folder / "log")
    return folder / "_build" / builder


def run_builder(command: list[str], strict: bool, log: Path) -> None:
    """Let Sphinx build, strictly if all chapters were executed.

    Raises
    ------
    BookError
        If there is an error, or a warning where it is strict; the message has the last of them.
    """
    if not strict:
        print("pages ... chapters that were never executed stand as they are written", flush=True)
    command = [*command, "--keep-going", *(["-W"] if strict else [])]
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
