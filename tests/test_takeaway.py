"""Notebooks to take away: nothing is left in them that only the book understands, and their code is the chapters'."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from subspace_lib import __version__
from subspace_lib.__main__ import main
from subspace_lib.press.build import ROOT
from subspace_lib.press.chapters import read_yaml
from subspace_lib.press.takeaway import plain, works_of, write_notebooks

BOOK = ROOT / "book"
URL = read_yaml(ROOT / "_config.yml")["repository"]["url"]
WORKS = {"li2018": ("Li et al.", "2018", "https://a.org/1"), "rissanen1978": ("Rissanen", "1978", "")}


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    assert main(["notebooks", "--out", str(folder)]) == 0
    return folder


def sources(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_no_word_is_left_that_only_the_book_understands(notebooks: Path) -> None:
    found = {path.name: sources(path, "markdown") for path in notebooks.glob("*.ipynb")}
    assert set(found) == {path.name for path in BOOK.glob("*.ipynb")}
    for name, texts in found.items():
        text = "\n".join(texts)
        assert not re.findall(r"\{[a-z][\w:-]*\}`", text), name
        assert not re.findall(r"(?m)^(?:```|:::)\{|^\([\w-]+\)=$", text), name
        assert not re.findall(r"\]\((?!https?://)[^)\s]+\.(?:ipynb|md|html|svg|py)\b", text), name


def test_code_is_the_chapters_and_every_caption_follows_its_cell(notebooks: Path) -> None:
    for path in notebooks.glob("*.ipynb"):
        code = [re.sub(r'"[0-9a-f]{40}"', f'"v{__version__}"', source) for source in sources(path, "code")]
        assert code == sources(BOOK / path.name, "code")
        cells = json.loads(path.read_text())["cells"]
        for cell, after in itertools.pairwise(cells):
            if cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption"):
                assert after["source"].startswith("**Figure.** "), f"{path.name}: {cell['id']}"
        assert len({cell["id"] for cell in cells}) == len(cells)


def test_solutions_stay_folded_on_colab(notebooks: Path) -> None:
    cells = json.loads((notebooks / "03_intrinsic_dimension.ipynb").read_text())["cells"]
    folded = [cell for cell in cells if cell["metadata"].get("cellView") == "form"]
    assert folded == [
        cell
        for cell in cells
        if {"hide-cell", "hide-input", "remove-input", "setup"} & set(cell["metadata"].get("tags", []))
    ]
    assert folded


def test_words_of_the_book_become_plain() -> None:
    assert plain("Few {cite:p}`li2018,rissanen1978`.", WORKS, "https://b.org/") == (
        "Few ([Li et al., 2018](https://a.org/1); [Rissanen, 1978](https://b.org/bibliography.html))."
    )
    assert plain("{cite:t}`li2018` say", WORKS, "") == "[Li et al. (2018)](https://a.org/1) say"
    assert plain("[so](03_x.ipynb#here), [up](#top)", {}, "https://b.org/") == (
        "[so](https://b.org/03_x.html#here), [up](#top)"
    )
    assert plain("the map $f[i](0)$", {}, "https://b.org/") == "the map $f[i](0)$"
    drawn = plain("```{figure} _static/a.svg\n:name: f\n:alt: a cube\n\nTwo\nlines.\n```", {}, "https://b.org/")
    assert drawn == "![a cube](https://b.org/_static/a.svg)\n\n*Two lines.*"


@pytest.mark.parametrize("text", ["{numref}`fig-a`", ":::{note}\nwords\n:::", "(label)=\n# Title", "{cite:p}`nobody`"])
def test_what_has_no_plain_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no plain form|not in references"):
        plain(text, WORKS, "")


def test_authors_of_a_work(tmp_path: Path) -> None:
    entry = "@article{a, author={{\\'E}x, A. and van Camp, B.}, title={T}, year={1999}, eprint={1.2}}"
    (tmp_path / "r.bib").write_text(entry)
    assert works_of(tmp_path / "r.bib") == {"a": ("Éx and van Camp", "1999", "https://arxiv.org/abs/1.2")}


def test_a_notebook_fetches_the_library_of_its_own_commit(tmp_path: Path) -> None:
    """Between releases too, and when the repository has moved on; a changed checkout has no commit to fetch."""
    root = tmp_path / "repository"
    for folder in ("book", "subspace_lib"):
        (root / folder).mkdir(parents=True)
    chapter = json.loads((BOOK / "index.ipynb").read_text(encoding="utf-8"))
    [setup] = [cell for cell in chapter["cells"] if "setup" in cell["metadata"].get("tags", [])]
    (root / "book" / "index.ipynb").write_text(json.dumps({**chapter, "cells": [setup]}))
    (root / "book" / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    shutil.copy2(ROOT / "_config.yml", root)
    settings = {"user.name": "a", "user.email": "a@b.org", f"url.{root.as_uri()}.insteadOf": URL, "safe.directory": "*"}
    told = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_CONFIG_GLOBAL": os.devnull}
    for number, (key, value) in enumerate(settings.items()):
        told |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}

    def commit_library(says: str, *more: str) -> None:
        (root / "subspace_lib" / "__init__.py").write_text(f"said = {says!r}\n")
        for task in (
            ["init", "--quiet"],
            ["add", "."],
            ["commit", "--quiet", "--message", says],
            *([more] if more else []),
        ):
            subprocess.run(["git", *task], cwd=root, env=os.environ | told, check=True)

    def fetched(book: Path) -> str:
        place = book / "place"
        place.mkdir(parents=True)
        [code] = sources(book / "index.ipynb", "code")
        command = [sys._base_executable, "-I", "-c", f"{code}\nimport subspace_lib\nprint(subspace_lib.said)"]
        done = subprocess.run(command, cwd=place, env=os.environ | told, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    commit_library("released", "tag", f"v{__version__}")
    commit_library("written with it")
    write_notebooks(root, tmp_path / "plain")
    (root / "subspace_lib" / "__init__.py").write_text("said = 'not committed'\n")
    write_notebooks(root, tmp_path / "changed")
    commit_library("later")
    assert fetched(tmp_path / "plain") == "written with it"
    assert fetched(tmp_path / "changed") == fetched(root / "book") == "released"
