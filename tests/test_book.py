"""The build: what it makes, what it keeps, and what it says when something is wrong."""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from subspace_lib import __main__
from subspace_lib.press import build as book
from subspace_lib.press import execution, pages
from subspace_lib.press.chapters import BookError, chapter_names, modules_of, read_notebook, record_of
from subspace_lib.press.execution import running_folder
from subspace_lib.press.status import status_tables, write_executions
from subspace_lib.press.takeaway import works_of, write_notebooks
from subspace_lib.study.records import results

REPORT = 'import os\nprint(PROFILE, os.environ["SUBSPACE_DEVICE"], os.environ.get("SUBSPACE_OFFLINE"))'


def write_chapter(root: Path, name: str, *sources: str) -> None:
    """A chapter with a title, a parameters cell and these cells."""
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {name}"}]
    for number, source in enumerate(['PROFILE = "quick"', *sources]):
        metadata = {"tags": ["parameters"]} if number == 0 else {}
        cell = {"cell_type": "code", "id": f"cell-{number}", "metadata": metadata, "source": source}
        cells.append(cell | {"outputs": [], "execution_count": None})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path = root / "book" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(notebook))


def make_root(root: Path, **chapters: str) -> Path:
    """A small checkout: an index and these chapters, each of one cell."""
    (root / "book").mkdir(parents=True)
    (root / "_config.yml").write_text(
        "only_build_toc_files: true\nexclude_patterns: [notebooks]\nexecute: {execute_notebooks: 'off'}\n"
    )
    (root / "book" / "index.md").write_text("# Small\n\nFirst edition.\n")
    contents = "format: jb-book\nroot: index\n" + ("chapters:\n" if chapters else "")
    contents += "".join(f"- file: {name}\n" for name in chapters)
    (root / "book" / "_toc.yml").write_text(contents)
    for name, source in chapters.items():
        write_chapter(root, name, source)
    return root


@pytest.fixture(autouse=True)
def real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """These chapters need no data."""
    monkeypatch.setattr(book, "find_standins", list)
    monkeypatch.delenv("SUBSPACE_OFFLINE", raising=False)
    monkeypatch.delenv("RERUN", raising=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A small book with its page of what ran where, built once, and the lines that this printed."""
    root = make_root(tmp_path_factory.mktemp("built") / "root", first=REPORT, second="1 + 1")
    (root / "book/status.md").write_text("# Status\n\nAbout.\n")
    with (root / "book/_toc.yml").open("a") as contents:
        contents.write("- file: status\n")
    (root / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(book, "find_standins", lambda: ["mnist-standin"])
        assert book.build_book("smoke", "cpu", root=root) == root / "_build/html/index.html"
    return root, printed.getvalue().splitlines()


@pytest.fixture
def root(built: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small book, to change."""
    monkeypatch.setattr(book, "find_standins", lambda: ["mnist-standin"])
    return Path(shutil.copytree(built[0], tmp_path / "root"))


def test_a_book_is_built(built: tuple[Path, list[str]]) -> None:
    root, lines = built
    assert any(line.startswith("[1/2] first ... ") and line.endswith(" s") for line in lines)
    assert (root / "_build/html/index.html").as_uri() in lines[-1]
    assert "smoke cpu 1" in (root / "_build/html/first.html").read_text()
    notebook = json.loads((root / "_build/executed/first.ipynb").read_text())
    injected = [cell for cell in notebook["cells"] if "injected-parameters" in cell["metadata"].get("tags", [])]
    assert ["remove-cell" in cell["metadata"]["tags"] for cell in injected] == [True]
    record = notebook["metadata"]["subspace"]
    assert record["profile"] == "smoke" and record["seconds"] > 0 and "torch" in record["versions"]


def test_only_the_chapter_that_changed_is_executed_and_its_failure_leaves_the_pages(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executed, index = root / "_build/executed", root / "_build/html/index.html"
    before = (executed / "second.ipynb").stat().st_mtime_ns, (executed / "first.ipynb").read_bytes()
    page = index.read_bytes()
    (root / "book/index.md").write_text("# Small\n\nSecond edition.\n")
    write_chapter(root, "first", REPORT, "# a comment\nraise KeyError('no such thing')")
    monkeypatch.setattr(book, "build_book", functools.partial(book.build_book, root=root))
    assert __main__.main(["book", "--profile", "smoke", "--device", "cpu"]) == 1
    output = capsys.readouterr()
    assert "[2/2] second ... unchanged" in output.out
    assert "[1/2] first failed" in output.err
    assert "code cell 3: # a comment" in output.err and "KeyError: 'no such thing'" in output.err
    assert "Traceback" not in output.err
    assert (executed / "first.failed.ipynb").exists()
    assert before == ((executed / "second.ipynb").stat().st_mtime_ns, (executed / "first.ipynb").read_bytes())
    assert index.read_bytes() == page
    assert not list((root / "_build").glob("running-*"))


def test_a_warning_leaves_the_old_pages(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (root / "_build/html/index.html").read_bytes()
    (root / "book/index.md").write_text("# Small\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(BookError, match=r"(?s)pages did not build.*index\.md:3: WARNING.*nowhere"):
        book.build_book("smoke", "cpu", root=root)
    assert capsys.readouterr().out.count("... unchanged") == 2
    assert (root / "_build/html/index.html").read_bytes() == page


def test_the_pages_are_put_together_from_what_is_there(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", first="1", second="2")
    executed = tmp_path / "executed"
    executed.mkdir()
    (executed / "gone.md").write_text("# Gone\n")
    (executed / "first.ipynb").write_text("as it was executed, without a record")
    (root / "book/status.md").write_text("# Status\n")
    assert not pages.assemble(root, executed, tmp_path / "one"), "the second was never executed"
    there = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert there == ["_static", "_toc.yml", "first.ipynb", "index.md", "notebooks", "second.ipynb", "status.md"]
    assert (tmp_path / "one/first.ipynb").read_text() == "as it was executed, without a record"
    assert read_notebook(tmp_path / "one/notebooks/first.ipynb") == read_notebook(root / "book/first.ipynb")
    assert (tmp_path / "one/status.md").read_text().count("not executed") == 2
    (executed / "second.ipynb").write_text("")
    assert pages.assemble(root, executed, tmp_path / "two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "unknown profile 'huge'; choose one of: smoke, quick, full"),
        (["--only", "nowhere"], "unknown chapter 'nowhere'"),
        (["--device", "cuda"], "device 'cuda' was asked for, but PyTorch finds no GPU here"),
        (["--device", "abacus"], "'abacus'"),
        (["--jobs", "0"], "jobs must be at least 1, not 0"),
        (["--jobs", "many"], "'many'"),
        (["--limit", "inf"], "the limit must be a positive number of seconds, not inf"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    try:
        code = __main__.main(["book", *arguments])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error and error.count("\n") == 1


def test_chapters_that_are_named_one_by_one_are_all_meant() -> None:
    assert __main__.read_arguments(["book", "--only", "a", "--only", "b", "c"]).only == ["a", "b", "c"]
    assert __main__.read_arguments(["book"]).only == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: MemoryError\n"),
        (
            ModuleNotFoundError("No module named 'joblib'"),
            "error: No module named 'joblib'; `pip install 'subspace_lib[book]'` brings what the commands need",
        ),
    ],
)
def test_an_error_is_named_if_it_says_nothing_and_what_is_not_installed_is_named(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(__main__, "run", fail)
    assert __main__.main(["data"]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_path_that_the_console_cannot_write_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "run", lambda _: print("the book is in /home/zo\xeb"))
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    monkeypatch.setattr(sys, "stdout", console)
    assert __main__.main(["data"]) == 0
    console.flush()
    assert console.buffer.getvalue() == b"the book is in /home/zo\\xeb\n"  # type: ignore[attr-defined]


def test_closed_outputs_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: object) -> None:
        sys.stdout.write("done")
        sys.stderr.write("warned")

    monkeypatch.setattr(__main__, "run", write)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert __main__.main(["data"]) == 0


def test_the_chapters_themselves_are_not_written_over(tmp_path: Path) -> None:
    root = make_root(tmp_path, one="1")
    before = (root / "book/one.ipynb").read_bytes()
    for out in (root / "book", root / "_build" / ".." / "book"):
        with pytest.raises(ValueError, match="holds the chapters themselves"):
            book.execute_chapters(out, "smoke", "cpu", root=root)
    assert (root / "book/one.ipynb").read_bytes() == before


def test_one_of_several_gpus_runs_one_chapter_at_a_time_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(book, "default_device", lambda: "cuda:1")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a GPU, {device}")
    monkeypatch.setattr(book, "execute", lambda *_, **__: [])
    book.execute_chapters(tmp_path / "out", "smoke", root=make_root(tmp_path / "root", one="1", two="2"))
    assert capsys.readouterr().out.startswith("2 chapters, profile smoke, cuda:1, 1 at a time\n")
    assert book.describe(tmp_path, "smoke", "cuda:1")["device"] == "a GPU, cuda:1"


def test_a_variable_that_is_refused_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_root(tmp_path / "root", one="1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("SUBSPACE_KERNELS", "1")
    with pytest.raises(ValueError, match="SUBSPACE_KERNELS is '1'"):
        book.execute_chapters(tmp_path / "out", "smoke", "cpu", root=root)
    monkeypatch.setenv("RERUN", "yes")
    with pytest.raises(ValueError, match="RERUN is 'yes'; allowed is 1"):
        book.execute_chapters(tmp_path / "out", "smoke", "cpu", root=root)
    assert [*(tmp_path / "temporary").iterdir(), *(tmp_path / "out").glob("running-*")] == []


def test_a_chapter_without_profile_is_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path, only="1 + 1")
    text = (root / "book/only.ipynb").read_text()
    (root / "book/only.ipynb").write_text(text.replace("PROFILE", "PROFIL"))
    with pytest.raises(ValueError, match="chapter only has no cell tagged 'parameters' that sets PROFILE"):
        book.build_book(root=root)


def make_library(root: Path, **modules: str) -> None:
    """A library of these modules; ``a__b`` is the module b of the package a."""
    for name, source in modules.items():
        path = root.joinpath("subspace_lib", *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for folder in (root / "subspace_lib", path.parent):
            (folder / "__init__.py").touch()
    (root / "subspace_lib/__init__.py").write_text("v = 1\nif TYPE_CHECKING:\n    from subspace_lib.one import f\n")


def test_the_digest_follows_imports(tmp_path: Path) -> None:
    root = make_root(tmp_path, chapter="def late():\n    from subspace_lib import f")
    write_chapter(tmp_path, "other", "import subspace_lib.deep.below as b", "%matplotlib inline\n")
    make_library(
        root, one="from subspace_lib.deep import below", two="import subspace_lib.one", deep__below="import os"
    )
    make_library(root, deep__aside="")
    (root / "data/results").mkdir(parents=True)

    def digest(name: str, circumstance: str = "quick") -> str:
        return book.digest_of(root, name, [circumstance])

    def changes(path: str) -> tuple[bool, bool]:
        before = digest("chapter"), digest("other")
        (root / path).write_text(f"{(root / path).read_text() if (root / path).exists() else ''}\n")
        return digest("chapter") != before[0], digest("other") != before[1]

    assert digest("chapter") != digest("chapter", "smoke")
    assert changes("subspace_lib/one.py") == (True, True), "a magic may import anything"
    write_chapter(tmp_path, "other", "import subspace_lib.deep.below as b")
    assert changes("subspace_lib/one.py") == (True, False)
    assert changes("subspace_lib/deep/below.py") == (True, True)
    assert changes("subspace_lib/deep/__init__.py") == (True, True)
    assert changes("subspace_lib/deep/aside.py") == (False, False)
    assert changes("subspace_lib/two.py") == (False, False)
    assert changes("book/index.md") == (False, False)
    assert changes("book/chapter.ipynb") == (True, False)
    assert changes("data/results/f1.csv") == (True, True)
    assert changes("data/results/.f1.csv.0a1b.csv") == (False, False), "a sweep has it for a moment"
    write_chapter(tmp_path, "other", "from subspace_lib import v")
    assert changes("subspace_lib/two.py") == (False, False)
    assert changes("subspace_lib/__init__.py") == (True, True)
    write_chapter(tmp_path, "other", "import subspace_lib")
    assert changes("subspace_lib/two.py") == (False, True)


def test_the_chapters_of_this_book_depend_on_what_they_import() -> None:
    kilobyte = {path.name for path in modules_of(book.ROOT, book.ROOT / "book/09_a_network_in_a_kilobyte.ipynb")}
    assert {"subspace.py", "training.py", "records.py", "transforms.py", "kernels.c", "figures.py"} <= kilobyte
    assert not {"build.py", "execution.py", "__main__.py", "sweep.py", "scorecard.py"} & kilobyte


def test_what_fails_is_said_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBSPACE_DATA", "somewhere")
    uses = "import beside\nfrom subspace_lib.tasks.datasets import _note, data_folder\nprint(data_folder())\n"
    root = make_root(
        tmp_path / "root",
        dead="written below",
        late=f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep(60)",
        never="1",
        wrong="raise KeyError('no such thing')",
        **{"part/good": uses + "_note('mnist'); _note('cifar10-standin'); _note('cifar10-standin')"},
    )
    write_chapter(root, "dead", "import os\nos.kill(os.getpid(), 9)", "1 + 1")
    out = Path("out")  # the chapters' folder is another
    (tmp_path / "beside.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (".", os.environ.get("PYTHONPATH")))))
    with pytest.raises(BookError) as failed:
        book.execute_chapters(out, "smoke", "cpu", only=["wrong", "dead", "part/good"], jobs=3, root=root)
    said = str(failed.value)
    assert "[4/5] wrong failed after" in said and "code cell 2: raise KeyError" in said and "'no such thing'" in said
    assert re.search(r"dead failed.*\n  code cell 2: import os\n  .*DeadKernelError", said)
    assert len(said.splitlines()) == 8
    begun, monotonic = tmp_path / "begun", time.monotonic
    monkeypatch.setattr(execution.time, "monotonic", lambda: monotonic() + 900 * begun.exists())
    with pytest.raises(BookError, match=r"late failed after 9\d\d s\n(?s:.*)\n  it took longer than its 900 s"):
        book.execute_chapters(out, "smoke", "cpu", only=["late"], limit=900, root=root)
    assert sorted(path.name for path in out.glob("*")) == [
        ".running.lock",
        *(f"{name}.failed.ipynb" for name in ("dead", "late")),
        "part",
        "wrong.failed.ipynb",
    ]
    notebook = json.loads((out / "part/good.ipynb").read_text())
    assert json.dumps(str(tmp_path / "somewhere"))[1:-1] in json.dumps(notebook["cells"][-1]["outputs"])
    assert notebook["metadata"]["subspace"]["standins"] == ["cifar10-standin"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_pages_from_chapters_executed_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "print(6 * 7)"
    root = make_root(tmp_path / "root", **{"part/first": source, "second": source, "third": source})
    (root / "book/status.md").write_text("# Status\n")
    with (root / "book/_toc.yml").open("a") as contents:
        contents.write("- file: status\n")
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(ValueError, match="no executed chapter in .*elsewhere; run"):
        book.pages_of(elsewhere, root)
    book.execute_chapters(elsewhere, "smoke", "cpu", only=["part/first"], root=root)
    assert "[2/3] second ... was never executed" in capsys.readouterr().out
    foreign = json.loads((elsewhere / "part/first.ipynb").read_text())
    del foreign["metadata"]["subspace"]
    (root / "_build/executed").mkdir(parents=True)
    (root / "_build/executed/second.ipynb").write_text(json.dumps(foreign))
    index = book.pages_of(elsewhere, root)
    assert "never executed stand as they are written" in capsys.readouterr().out
    assert "42" in (index.parent / "part/first.html").read_text()
    assert "42" not in (index.parent / "third.html").read_text()
    written = (index.parent / "_sources/part/first.ipynb", *(index.parent / "_downloads").rglob("first.ipynb"))
    assert ["42" in path.read_text() for path in written].count(False) == 2, "the button of the page, and a download"


def test_a_broken_chapter_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path, first="1")
    odd = json.loads((root / "book/first.ipynb").read_text())
    texts = ["{", "[]", '{"cells": [1]}', "[" * 100_000, "\xe9"]
    for metadata in ([], {"tags": None}, {"tags": 1}):
        texts.append(json.dumps(odd | {"cells": [*odd["cells"], odd["cells"][1] | {"metadata": metadata}]}))
    for text in texts:
        (root / "book/first.ipynb").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"book.first\.ipynb is not a notebook"):
            book.execute_chapters(tmp_path / "out", root=root)


@pytest.mark.parametrize(
    "change",
    [
        lambda notebook: notebook.pop("metadata"),
        lambda notebook: notebook["cells"].clear(),
        lambda notebook: notebook.update(metadata=[]),
        lambda notebook: notebook["cells"][0]["metadata"].update(mystnb=None),
        lambda notebook: notebook["cells"][0]["metadata"].update(mystnb={"figure": "fig"}),
        lambda notebook: notebook["cells"][0]["metadata"].update(mystnb={"figure": {"caption": 5}}),
        lambda notebook: notebook["cells"][0]["metadata"].update(mystnb={"image": {"alt": None}}),
    ],
)
def test_a_notebook_that_lacks_what_we_read_is_named(change: Callable[[Any], Any], tmp_path: Path) -> None:
    root = make_root(tmp_path, one="1")
    path = root / "book/one.ipynb"
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))
    with pytest.raises(ValueError, match=r"^\S*one\.ipynb is not a notebook: "):
        write_notebooks(root, tmp_path / "out")


def test_a_notebook_of_before_cells_had_names(tmp_path: Path) -> None:
    root = make_root(tmp_path, one="1")
    path = root / "book/one.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        del cell["id"]
    notebook["cells"][1]["metadata"]["mystnb"] = {"figure": {"caption": "A curve."}}
    path.write_text(json.dumps(notebook | {"nbformat_minor": 4}))
    write_notebooks(root, tmp_path / "out")
    cells = read_notebook(tmp_path / "out/one.ipynb")["cells"]
    assert cells[2] == {"cell_type": "markdown", "metadata": {}, "source": "**Figure.** A curve."}


@pytest.mark.skipif(os.name != "posix", reason="links are POSIX's")
def test_what_an_editor_leaves_beside_an_open_chapter_stops_no_build(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", one="1")
    (root / "book/.#one.ipynb").symlink_to("reader@machine.42")
    pages.assemble(root, tmp_path / "executed", tmp_path / "book")
    assert (tmp_path / "book/one.ipynb").is_file()


def test_a_damaged_executed_chapter_is_named_where_it_lies(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", one="1")
    (root / "book/_static").mkdir()
    (root / "book/_static/mark.svg").write_text("<svg/>")
    (root / "_config.yml").write_text("title: Small\n")
    (tmp_path / "executed").mkdir()
    (tmp_path / "executed/one.ipynb").write_text("{")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'executed' / 'one.ipynb'} is not a notebook")):
        pages.assemble(root, tmp_path / "executed", tmp_path / "book")


def test_a_dead_builds_folder_is_cleared_and_a_live_ones_is_not(tmp_path: Path) -> None:
    (tmp_path / "running-dead").mkdir()
    (tmp_path / "running-dead" / "left").touch()
    with running_folder(tmp_path) as first, running_folder(tmp_path) as second:
        assert first.is_dir() and second.is_dir() and first != second
        assert not (tmp_path / "running-dead").exists()
    assert list(tmp_path.glob("running-*")) == []


@pytest.fixture
def editions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are built in no time, with the number of the build on them."""
    numbers = itertools.count(1)

    def build(root: Path, executed: Path, folder: Path, builder: str) -> Path:
        (folder / "built").mkdir()
        (folder / "built" / "index.html").write_text(f"edition {next(numbers)}")
        return folder / "built"

    monkeypatch.setattr(pages, "_jupyter_book", build)


@pytest.mark.usefixtures("editions")
def test_old_pages_that_cannot_be_removed_are_named_and_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, remove = make_root(tmp_path / "root"), os.unlink

    def refuse(path: str, **where: object) -> None:
        if Path(path).name == "index.html":
            raise PermissionError(1, "Operation not permitted", path)
        remove(path, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        for number in range(1, 5):
            assert pages.build_pages(root, tmp_path).read_text() == f"edition {number}"
    left = list((root / "_build").glob("running-*"))
    assert len(left) == 3
    said = capsys.readouterr().out
    assert sum(f"{path} cannot be removed" in said for path in left) == 2, "all but the last build's"
    (root / "_build" / "running-odd" / "lock" / "no file").mkdir(parents=True)
    assert pages.build_pages(root, tmp_path).read_text() == "edition 5"
    assert not list((root / "_build").glob("running-*"))


@pytest.mark.parametrize("name", ["html", "built"])
@pytest.mark.usefixtures("editions")
def test_pages_that_cannot_be_moved_stay_and_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, rename = make_root(tmp_path / "root"), Path.rename
    index = pages.build_pages(root, tmp_path)

    def refuse(path: Path, to: Path) -> Path:
        if path.name == name:
            raise PermissionError(13, "Permission denied", path)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BookError, match=r"html \(Permission denied\), which is as it was; close what uses it"):
        pages.build_pages(root, tmp_path)
    assert index.read_text() == "edition 1"
    assert not list((root / "_build").glob("running-*"))


def test_builds_that_end_at_once_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(path: Path, to: Path) -> Path:
        time.sleep(0.01)
        return rename(path, to)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", slowly)
    for number in range(8):
        (tmp_path / f"new-{number}").mkdir()
        (tmp_path / f"new-{number}" / "index.html").write_text(f"edition {number}")
    with ThreadPoolExecutor(8) as threads:
        done = [
            threads.submit(pages._exchange, tmp_path / "html", tmp_path / f"new-{number}", tmp_path / f"old-{number}")
            for number in range(8)
        ]
    assert [one.exception() for one in done] == [None] * 8
    assert (tmp_path / "html" / "index.html").exists()
    assert len(list(tmp_path.glob("old-*"))) == 7 and not list(tmp_path.glob("new-*"))


@pytest.mark.usefixtures("editions")
@pytest.mark.skipif(sys.platform == "win32", reason="links want rights there")
def test_a_link_in_the_place_of_the_pages_is_followed(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    (root / "_build").mkdir()
    (root / "_build" / "html").symlink_to(tmp_path / "site" / "book")
    for number in (1, 2):
        index = pages.build_pages(root, tmp_path)
        assert (tmp_path / "site" / "book" / "index.html").read_text() == f"edition {number}"
    assert index == root / "_build" / "html" / "index.html" and index.parent.is_symlink()


def start_build(root: Path) -> subprocess.Popen[str]:
    """A build of that checkout, as the command line starts it."""
    code = (
        "import functools, pathlib, signal, sys; from subspace_lib import __main__\n"
        "from subspace_lib.press import build as book\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in the background\n"
        "book.find_standins = lambda: []\n"
        "book.build_book = functools.partial(book.build_book, root=pathlib.Path(sys.argv[1]))\n"
        "sys.exit(__main__.main(['book', '--device', 'cpu']))"
    )
    return subprocess.Popen([sys.executable, "-c", code, root], stderr=subprocess.PIPE, text=True)


SLEEP = "import time\ntime.sleep(60)"
HOLD = "import ctypes\nctypes.PyDLL(None).sleep(60)  # and lets nothing else of this interpreter run"


@pytest.mark.parametrize(("how", "busy"), [("SIGINT", HOLD), ("SIGTERM", SLEEP), ("SIGKILL", SLEEP), ("SIGKILL", HOLD)])
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_stopped_build_leaves_nothing_behind(tmp_path: Path, how: str, busy: str) -> None:
    if busy == HOLD and not (sys.platform == "linux" and hasattr(os, "killpg")):
        pytest.skip("a thread cannot watch while the interpreter is held")
    marker = tmp_path / "kernel"
    noting = "import os, pathlib, tempfile\nsaid = f'{os.getpid()} {os.getppid()} {tempfile.mkdtemp()}'\n"
    noting += f"pathlib.Path({str(marker)!r}).write_text(said)\n"
    root = make_root(tmp_path / "root", busy=noting + busy)
    process = start_build(root)
    wait_until(lambda: marker.exists() and marker.read_text() != "")
    *pids, temporary = marker.read_text().split()
    if how == "SIGKILL":  # a name that Windows lacks
        process.kill()
    else:
        process.send_signal(getattr(signal, how))
    said = process.communicate(timeout=120)[1]
    wait_until(lambda: not any(map(is_running, map(int, pids))), seconds=10)
    wait_until(lambda: not list((root / "_build").rglob("running-*")), seconds=10)
    wait_until(lambda: not Path(temporary).exists(), seconds=10)
    if how != "SIGKILL":
        assert (process.returncode, said) == (130, "stopped\n")
    assert list((root / "_build").rglob("*.ipynb")) == []


def is_running(pid: int) -> bool:
    """Whether a process lives: one that ended but was not collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition; an error if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_contents_that_name_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "_toc.yml").write_text("root: index\nchapters: [{file: index}]\n")
    with pytest.raises(ValueError, match="names 'index', but book/ has no index.ipynb or index.md"):
        chapter_names(tmp_path)
    (tmp_path / "_toc.yml").write_text("format: jb-book")
    with pytest.raises(ValueError, match="_toc.yml names no page"):
        chapter_names(tmp_path)


@pytest.mark.parametrize("text", ["root: [", "", "words", "root: \xe9", "root: &again [*again]"])
def test_contents_and_configuration_that_are_no_yaml_are_named(text: str, tmp_path: Path) -> None:
    for name, read in (("_toc.yml", chapter_names), ("_config.yml", pages.configuration)):
        (tmp_path / name).write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=f"{name} is not YAML"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("html:\ntitle: T", "None as 'html'"), ("html: {}", "nothing as 'title'"), ("title: [1]", "[1] as 'title'")],
)
def test_a_configuration_that_lacks_what_we_read_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "_config.yml").write_text(text)
    with pytest.raises(ValueError, match=rf"_config\.yml says {re.escape(said)}, where a \w+ belongs"):
        pages.configuration(tmp_path, "title")


def test_references_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "references.bib"
    for text, words in (
        ("@book{a, title = {", "is not BibTeX"),
        ("@book{a, year = 2000}", ": 'a' needs an author"),
        ("@book{a, author = {\xe9}}", r"is not text in UTF-8 \(byte 19\)"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"references\.bib:? ?{words}"):
            works_of(path)


NO_RECORD = '{"cells": [], "metadata": {"subspace": {"digest": "1", "profile": "quick"}}}'


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"metadata": {}}', NO_RECORD])
def test_damaged_executed_chapter_counts_as_never_executed(text: str, tmp_path: Path) -> None:
    (tmp_path / "01.ipynb").write_text(text)
    assert record_of(tmp_path, "01") is None


def test_the_status_page_says_what_ran_where(root: Path) -> None:
    gpu = root / "data/executions_cuda.json"
    page = (root / "_build/html/status.html").read_text()
    record = json.loads((root / "_build/executed/first.ipynb").read_text())["metadata"]["subspace"]
    assert record["date"].partition("T")[0] in page and f"torch {record['versions']['torch']}" in page
    assert "smoke" in page and "No GPU has executed the book yet" in page
    assert "Of changed code" in page and "width_depth" in page
    assert not gpu.exists()
    links = re.findall(r'href="(_downloads/[^"]+first\.ipynb)"', page)
    clean, executed = ((root / "_build/html" / link).read_bytes() for link in links)
    assert json.loads(clean) == read_notebook(root / "book/first.ipynb")
    assert executed == (root / "_build/executed/first.ipynb").read_bytes()

    for damaged in ("{", "[]", '{"first": {"seconds": 3}}'):
        gpu.write_text(damaged)
        with pytest.raises(ValueError, match=r"executions_cuda\.json does not hold records of executions"):
            status_tables(root / "_build/executed", ["first"], gpu)
    gpu.unlink()
    write_executions(gpu, {"first": record})
    assert not gpu.exists(), "it ran on a CPU"
    on_gpu = record | {"profile": "full", "device": "NVIDIA H200", "standins": ["mnist-standin"], "seconds": 123.4}
    write_executions(gpu, {"gone": on_gpu})
    write_executions(gpu, {"first": on_gpu, "second": record})
    kept = json.loads(gpu.read_text())
    assert list(kept) == ["gone", "first"] and "digest" not in kept["first"] and kept["first"]["seconds"] == 123.4
    text = status_tables(root / "_build/executed", ["first"], gpu)
    last = text.split("## The last build on a GPU")[1].split("\n## ")[0].strip().splitlines()
    assert len(last) == 5
    assert last[2].startswith("| [](<first.ipynb>) | 123 | full (stand-in images) | NVIDIA H200 |")
    assert "## Measured on a GPU" in text and f"| {results('compared_cuda')[0]['val_accuracy']} |" in text
    recorded = [line.split(" | ")[3] for line in text.splitlines() if re.match(r"\| f\d \|", line)]
    assert recorded and {len(mean.partition(".")[2]) for mean in recorded} == {4}, (
        "a column has as many digits in each row"
    )
    assert last[4].startswith("Executed with python ") and f"torch {record['versions']['torch']}" in last[4]


def test_a_ctrl_c_while_pytorch_is_imported_is_no_traceback() -> None:
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from subspace_lib.__main__ import main\n"
        "sys.exit(main(['data']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=book.ROOT)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
