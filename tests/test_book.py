"""The build: what it makes, what it keeps, and what it says when something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from subspace_lib import __main__
from subspace_lib.press import build as book
from subspace_lib.press.chapters import BookError
from subspace_lib.press.status import status_tables, write_executions

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
    (root / "book" / f"{name}.ipynb").write_text(json.dumps(notebook))


def make_root(root: Path, **chapters: str) -> Path:
    """A small checkout: an index and these chapters, each of one cell."""
    (root / "book").mkdir(parents=True)
    (root / "_config.yml").write_text("only_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\n")
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


def test_a_book_from_first_build_to_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_root(tmp_path, first=REPORT, second="1 + 1")
    monkeypatch.setattr(book, "find_standins", lambda: ["mnist-standin"])
    index = book.build_book("smoke", "cpu", root=root)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("[1/2] first ... ") and line.endswith(" s") for line in lines)
    assert index.as_uri() in lines[-1]
    assert "smoke cpu 1" in (root / "_build/html/first.html").read_text()
    executed = root / "_build/executed"
    notebook = json.loads((executed / "first.ipynb").read_text())
    injected = [cell for cell in notebook["cells"] if "injected-parameters" in cell["metadata"].get("tags", [])]
    assert ["remove-cell" in cell["metadata"]["tags"] for cell in injected] == [True]
    record = notebook["metadata"]["subspace"]
    assert record["profile"] == "smoke" and record["seconds"] > 0 and "torch" in record["versions"]

    # Nothing changed, then one chapter did: only that one is executed again, and it fails.
    before = (executed / "second.ipynb").stat().st_mtime_ns, (executed / "first.ipynb").read_bytes()
    page = index.read_bytes()
    (root / "book/index.md").write_text("# Small\n\nSecond edition.\n")
    write_chapter(root, "first", REPORT, "# a comment\nraise KeyError('no such thing')")
    monkeypatch.setattr(__main__, "build_book", lambda *given: book.build_book(*given, root=root))
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


def test_a_warning_leaves_the_old_pages(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    index = book.build_book(root=root)
    page = index.read_bytes()
    (root / "book/index.md").write_text("# Small\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(BookError, match=r"(?s)pages did not build.*index\.md:3: WARNING.*nowhere"):
        book.build_book(root=root)
    assert index.read_bytes() == page


def test_a_removed_page_is_not_missed(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    executed.mkdir()
    root = make_root(tmp_path / "root")
    (executed / "gone.md").write_text("# Gone\n")
    book.copy_pages(root / "book", executed, [])
    assert sorted(path.name for path in executed.iterdir()) == ["_toc.yml", "index.md", "notebooks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "unknown profile 'huge'; choose one of: smoke, quick, full"),
        (["--only", "nowhere"], "unknown chapter 'nowhere'"),
        (["--device", "cuda"], "device 'cuda' was asked for, but PyTorch finds no GPU here"),
        (["--device", "abacus"], "'abacus'"),
        (["--jobs", "0"], "jobs must be at least 1, not 0"),
        (["--jobs", "many"], "'many'"),
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


def test_a_chapter_without_profile_is_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path, only="1 + 1")
    text = (root / "book/only.ipynb").read_text()
    (root / "book/only.ipynb").write_text(text.replace("PROFILE", "PROFIL"))
    with pytest.raises(ValueError, match="chapter only has no cell tagged 'parameters' that sets PROFILE"):
        book.build_book(root=root)


def test_the_digest_sees_what_matters(tmp_path: Path) -> None:
    root = make_root(tmp_path, one="1")
    (root / "subspace_lib/press").mkdir(parents=True)
    (root / "data/results").mkdir(parents=True)
    seen = [book.digest_of(root, "one", ["smoke"]), book.digest_of(root, "one", ["quick"])]
    for path in ("subspace_lib/new.py", "data/results/f1.csv", "book/one.ipynb"):
        (root / path).write_text("{}")
        seen.append(book.digest_of(root, "one", ["quick"]))
    assert len(set(seen)) == len(seen)
    (root / "subspace_lib/press/build.py").write_text("")
    (root / "book/index.md").write_text("")
    assert book.digest_of(root, "one", ["quick"]) == seen[-1]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_leaves_nothing_behind(tmp_path: Path, how: signal.Signals) -> None:
    marker = tmp_path / "kernel"
    sleeping = f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    root = make_root(tmp_path / "root", sleeping=sleeping)
    code = (
        "import functools, pathlib, signal, sys; from subspace_lib import __main__\n"
        "from subspace_lib.press import build as book\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in the background\n"
        "book.find_standins = lambda: []\n"
        "__main__.build_book = functools.partial(book.build_book, root=pathlib.Path(sys.argv[1]))\n"
        "sys.exit(__main__.main(['book', '--device', 'cpu']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, root], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: marker.exists() and marker.read_text() != "")
    kernel = int(marker.read_text())
    process.send_signal(how)
    assert process.communicate(timeout=20)[1] == "stopped\n"
    assert process.returncode == 130
    assert list((root / "_build").rglob("*.ipynb")) == []
    assert list((root / "_build").glob("running-*")) == []
    wait_until(lambda: not is_running(kernel))


def is_running(pid: int) -> bool:
    """Whether a process lives: one that ended but was not collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition; an error if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_contents_that_name_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "_toc.yml").write_text("root: index\nchapters: [{file: index}]\n")
    with pytest.raises(ValueError, match="names 'index', but book/ has no index.ipynb or index.md"):
        book.chapter_names(tmp_path)
    (tmp_path / "_toc.yml").write_text("root: [")
    with pytest.raises(ValueError, match="_toc.yml is not YAML"):
        book.chapter_names(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"metadata": {}}'])
def test_damaged_executed_chapter_counts_as_never_executed(text: str, tmp_path: Path) -> None:
    (tmp_path / "01.ipynb").write_text(text)
    assert book.stored_digest(tmp_path, "01") is None


def test_the_status_page_says_what_ran_where(tmp_path: Path) -> None:
    root = make_root(tmp_path, first="1 + 1")
    (root / "book/status.md").write_text("# Status\n\nAbout.\n")
    (root / "book/_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: first\n- file: status\n")
    (root / "data").mkdir()
    gpu = root / "data/executions_cuda.json"
    book.build_book("smoke", "cpu", root=root)
    page = (root / "_build/html/status.html").read_text()
    record = json.loads((root / "_build/executed/first.ipynb").read_text())["metadata"]["subspace"]
    assert record["date"].partition("T")[0] in page and f"torch {record['versions']['torch']}" in page
    assert "smoke" in page and "No GPU has executed the book yet" in page
    assert not gpu.exists()
    links = re.findall(r'href="(_downloads/[^"]+first\.ipynb)"', page)
    clean, executed = ((root / "_build/html" / link).read_bytes() for link in links)
    assert clean == (root / "book/first.ipynb").read_bytes()
    assert executed == (root / "_build/executed/first.ipynb").read_bytes()

    write_executions(gpu, root / "_build/executed", ["first"])
    kept = json.loads(gpu.read_text())
    assert kept == {"first": {key: value for key, value in record.items() if key != "digest"}}
    kept["first"] |= {"profile": "full", "device": "NVIDIA H200", "standins": ["mnist-standin"], "seconds": 123.4}
    gpu.write_text(json.dumps(kept))
    text = status_tables(root / "_build/executed", ["first"], gpu)
    last = text.split("## The last build on a GPU")[1].split("\n## ")[0].strip().splitlines()
    assert len(last) == 5
    assert last[2].startswith("| [](first.ipynb) | 123 | full (stand-in images) | NVIDIA H200 |")
    assert last[4].startswith("Executed with python ") and f"torch {record['versions']['torch']}" in last[4]
