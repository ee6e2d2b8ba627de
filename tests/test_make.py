"""What make does, the command line does; and what both do is what the README says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from subspace_lib import __main__
from subspace_lib.press import make
from subspace_lib.press.build import build_book

ROOT = Path(__file__).resolve().parents[1]
TARGETS = re.search(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))[1].split()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What is run, and with what in its environment; nothing is."""
    run: list[tuple[list[str], dict[str, str]]] = []

    def record(command: list[str], *, cwd: Path, env: dict[str, str], check: bool) -> SimpleNamespace:
        assert (cwd, check) == (ROOT, False)
        run.append((command, env))
        return SimpleNamespace(returncode=3 if command[2:] == ["mypy"] and "FAIL" in os.environ else 0)

    monkeypatch.setattr(subprocess, "run", record)
    return run


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_of_make_is_a_command(target: str) -> None:
    assert __main__.read_arguments([target]).command == target


def test_make_only_calls_these_commands() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = f"{' '.join(TARGETS)}: .venv/installed\n\t@$(BIN)/python -m subspace_lib $@\n"
    assert rule in text
    assert re.findall(r"(?m)^([\w. /-]+):(?![=])", text) == [".PHONY", " ".join(TARGETS), ".venv/installed"]


def test_a_task_is_what_the_readme_says(programs: list[tuple[list[str], dict[str, str]]]) -> None:
    lines = re.search(r"(?s)## The same by hand\n(.*?)\n## ", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    said = {tuple(shlex.split(part, comments=True)) for line in lines.splitlines() for part in line.split("&&")}
    assert [__main__.main([target]) for target in ("test", "check-pages")] == [0, 0]
    assert {tuple(command[:2]) for command, _ in programs} == {(sys.executable, "-m")}
    run = [tuple(command[2:]) for command, _ in programs]
    assert run[: len(make.LINT)] == list(make.LINT)
    options = {"-n", "2", "--nbmake-timeout=1800", "tests"}  # how, not what
    shortened = [tuple(word for word in command if word not in options) for command in run]
    assert set(shortened) - {("codespell_lib",)} <= said and ("codespell",) in said


def test_the_first_program_that_fails_is_named(
    programs: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAIL", "1")
    assert __main__.main(["lint"]) == 1
    assert capsys.readouterr().err == "mypy ended with exit code 3\n"
    assert len(programs) == 3


def test_colab_sees_its_own_widgets_first_and_no_checkout(
    programs: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    assert __main__.main(["colab"]) == 0
    (install, _), (command, told) = programs
    assert install[-2:] == ["ipywidgets==7.7.1", "ipython_genutils"]
    assert command[1:] == [str(ROOT / "tests" / "colab.py"), str(ROOT)]
    first, second = told["PYTHONPATH"].split(os.pathsep)
    assert first == install[-3] and Path(second).name.endswith("-packages")


def test_without_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("subspace_lib.press.build.ROOT", tmp_path)
    for target in ("lint", "colab", "pdf", "epub", "notebooks", "student"):
        assert __main__.main([target]) == 2
        assert "this command works in a checkout" in capsys.readouterr().err, target
    with pytest.raises(ValueError, match="this command works in a checkout"):
        build_book(root=tmp_path)
