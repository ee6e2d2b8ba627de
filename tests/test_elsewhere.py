"""Windows and macOS, as far as Linux can tell: what they lack is absent, their default encoding, their line ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from subspace_lib import processes
from subspace_lib.press import build
from subspace_lib.press.chapters import chapter_names, check_parameters, read_notebook
from subspace_lib.study.records import DATA, curves, published, read_records, results

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "elsewhere"


def run(*command: str, **told: str) -> str:
    """What a program of this environment prints, once it has ended well."""
    path = os.pathsep.join(filter(None, (told.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, cwd=ROOT, env=os.environ | told | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    return done.stdout.decode(told.get("PYTHONIOENCODING", "utf-8"))


@pytest.mark.skipif(sys.platform != "linux", reason="this is elsewhere")
def test_files_children_and_a_killed_sweep_where_posix_is_absent() -> None:
    chosen = "test_files or test_processes or killed_goes_on or once_and_its_table or stopped_build and SIGTERM"
    said = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen),
        *(f"tests/test_{name}.py" for name in ("files", "processes", "sweep", "book")),
        PYTHONPATH=str(HERE),
    )
    assert "failed" not in said and "passed" in said


def test_windows_gets_a_group_of_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, **options: given.update(options))
    monkeypatch.setattr(processes.sys, "platform", "win32")
    processes.start(["program"], {})
    assert given["creationflags"] == 0x200 and "process_group" not in given


def test_windows_ends_a_child_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child,
        monkeypatch.context() as patch,
    ):
        patch.delitem(vars(processes.os), "killpg", raising=False)
        patch.setattr(processes.sys, "platform", "win32")
        patch.setattr(processes.subprocess, "run", lambda command, **options: said.append(command))
        processes.end([child])
    assert said == [["taskkill", "/F", "/T", "/PID", str(child.pid)]] and child.returncode


def test_a_kernel_on_windows_is_told_a_handle_and_no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processes.PARENT, raising=False)
    monkeypatch.setenv("JPY_PARENT_PID", "812")
    assert processes._told() == 812
    monkeypatch.setattr(processes.sys, "platform", "win32")
    assert processes._told() is None
    monkeypatch.setenv(processes.PARENT, "34")
    assert processes._told() == 34 and processes.PARENT not in os.environ


ENCODINGS = """
import sys
from pathlib import Path
from subspace_lib import LeNet, SubspaceModel, make_projection
from subspace_lib.press import build, chapters, status, tables
from subspace_lib.study import findings, records, scorecard, sweep
out = Path(sys.argv[1])
model = SubspaceModel.from_seed(LeNet, make_projection("one_hot", 61_706, 2), 0)
model.save(out / "model.safetensors")
SubspaceModel.load(out / "model.safetensors", LeNet)
for record in records.curves("f3")[:2]:
    records.write_record(out / f"{records.Spec(**record['spec']).key}.json", record)
known, damaged = records.read_records(out)
records.write_table(out / "f3.jsonl", known.values())
assert len(records.results("f3", out)) == len(known) == 2 and not damaged
root = build.ROOT
for name in chapters.chapter_names(root / "book"):
    chapters.check_parameters(root / "book" / f"{name}.ipynb")
    chapters.digest_of(root, name, [])
status.status_tables(out, ["scorecard"], root / "data" / "executions_cuda.json")
scorecard.scorecard()
sweep.code_commit()
"""


def test_every_file_is_opened_with_an_encoding(tmp_path: Path) -> None:
    run("-X", "warn_default_encoding", "-W", "error::EncodingWarning:subspace_lib", "-c", ENCODINGS, str(tmp_path))
    run("-m", "ruff", "check", "--preview", "--select", "PLW1514", "subspace_lib")


def test_a_console_of_western_europe_can_print_all_help() -> None:
    for command in ((), ("book",), ("sweep",), ("gpu",)):
        assert "usage" in run("-m", "subspace_lib", *command, "--help", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")


def test_tables_and_chapters_with_the_line_ends_of_windows(tmp_path: Path) -> None:
    def copied(path: Path) -> Path:
        text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        (tmp_path / path.name).write_bytes(text)
        return tmp_path / path.name

    for name in ("f3.csv", "f3.jsonl"):
        copied(DATA / "results" / name)
    assert results("f3", tmp_path) == results("f3")
    assert curves("f3", tmp_path) == curves("f3")
    assert read_records(None, tmp_path / "f3.jsonl") == read_records(None, DATA / "results" / "f3.jsonl")
    copied(DATA / "published" / "published.csv")
    assert published(tmp_path) == published()
    chapter = ROOT / "book" / "scorecard.ipynb"
    check_parameters(copied(chapter))
    assert read_notebook(tmp_path / chapter.name) == read_notebook(chapter)
    for path in (ROOT / "book" / "_toc.yml", *(ROOT / "book").glob("*.md")):
        copied(path)
    for path in (ROOT / "book").glob("*.ipynb"):
        shutil.copy(path, tmp_path)
    assert chapter_names(tmp_path) == chapter_names(ROOT / "book")


def test_a_folder_with_backslashes_spaces_and_accents(tmp_path: Path) -> None:
    """A book is executed and built there, and a chapter finds out where it is."""
    root = tmp_path / "D\\Büch er {a} [b]" if os.sep == "/" else tmp_path / "Büch er"
    (root / "book").mkdir(parents=True)
    (root / "_config.yml").write_text(
        "only_build_toc_files: true\nexclude_patterns: [notebooks]\nexecute: {execute_notebooks: 'off'}\n",
        encoding="utf-8",
    )
    (root / "book" / "_toc.yml").write_text("format: jb-book\nroot: index\n", encoding="utf-8")
    cell = {"cell_type": "code", "id": "one", "outputs": [], "execution_count": None, "metadata": {}}
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Title"},
        cell | {"id": "parameters", "metadata": {"tags": ["parameters"]}, "source": "PROFILE = 'quick'"},
        cell | {"source": "import os\nprint(os.getcwd(), 'α')"},
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (root / "book" / "index.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    page = build.build_book("smoke", "cpu", root=root)
    assert page == root / "_build" / "html" / "index.html"
    assert f"{root / 'book'} α" in page.read_text(encoding="utf-8")
