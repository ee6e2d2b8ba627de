"""What students get: no solution, and everything else of the notebooks, so that they still run."""

import symtable
from pathlib import Path

import pytest

from subspace_lib.__main__ import main
from subspace_lib.press.chapters import read_notebook
from subspace_lib.press.takeaway import without_solutions

BOOK = Path(__file__).resolve().parents[1] / "book"
CHAPTERS = sorted(BOOK.glob("[0-9]*.ipynb"))


def names_in(cells: list[dict]) -> tuple[set[str], set[str]]:
    """The global names that code cells make, and those that they read, at the top or in their functions."""
    top = symtable.symtable("\n".join("".join(cell["source"]) for cell in cells), "cells", "exec")
    made = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    read = {one.get_name() for one in top.get_symbols() if one.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        read |= {one.get_name() for one in table.get_symbols() if one.is_global() and one.is_referenced()}
        tables += table.get_children()
    return made, read


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem[:2])
def test_only_solutions_go_and_nothing_needs_them(chapter: Path) -> None:
    before, after = read_notebook(chapter)["cells"], without_solutions(read_notebook(chapter))["cells"]
    assert [cell["id"] for cell in before] == [cell["id"] for cell in after]
    pairs = list(zip(before, after, strict=True))
    gone = [old for old, new in pairs if old["source"] != new["source"]]
    assert len(gone) >= 3
    assert all("".join(cell["source"]).startswith("# Solution") for cell in gone)
    text = "".join("".join(cell["source"]) for cell in after)
    assert "# Solution" not in text and "<summary>Hint" in text
    assert all(cell["outputs"] == [] for cell in after if cell["cell_type"] == "code")
    made, read = names_in([cell for cell in after if cell["cell_type"] == "code"])
    assert not (names_in(gone)[0] - made) & read


def test_a_folded_cell_that_is_no_solution_stays() -> None:
    def cell(kind: str, source: str, **metadata: list[str]) -> dict:
        return {"cell_type": kind, "source": [source], "metadata": metadata, "outputs": [1], "execution_count": 1}

    folded = cell("code", "1", tags=["hide-cell"])
    headings = [cell("markdown", text) for text in ("## Deeper", "### Exercise 1: one", "## Quiz", "no heading")]
    cells = [cell for heading in headings for cell in (heading, folded)]
    done = without_solutions({"cells": cells})["cells"]
    assert [one["source"] for one in done[1::2]] == [["1"], [], ["1"], ["1"]]
    assert folded["outputs"] == [1]


def test_the_command_writes_every_notebook_and_spares_the_book(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["student", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in BOOK.glob("*.ipynb")}
    texts = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert not any("# Solution" in text for text in texts) and sum("check_1(" in text for text in texts) >= 10
    assert main(["student", "--out", str(BOOK)]) == 2
    assert "choose another folder" in capsys.readouterr().err
