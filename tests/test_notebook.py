"""A cell that runs before the ones that it needs says so."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SETUP = "from subspace_lib.press.notebook import explain_missing_names\nexplain_missing_names()"


def run(*cells: str) -> str:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook.cells[-1].outputs[0]["text"]


def test_a_missing_name_says_what_to_run() -> None:
    with pytest.raises(CellExecutionError, match=r"(?s)NameError.*'lenet' is not defined.*Run the cells above first"):
        run(SETUP, "print(lenet)")


def test_other_errors_and_good_cells_are_as_they_were() -> None:
    assert run(SETUP, "lenet = 1\nprint(lenet)") == "1\n"
    with pytest.raises(CellExecutionError, match=r"ZeroDivisionError(?!.*Run the cells)"):
        run(SETUP, "1 / 0")
