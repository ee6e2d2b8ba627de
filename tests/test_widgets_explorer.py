"""The explorer of sparse formats: its arrays are PyTorch's own, and it is plain HTML."""

import re

import numpy as np
import pytest
import torch

from subspace_lib.press.widgets import LIMIT_BYTES, FormatExplorer

MATRIX = [[0, 1, 0, 0], [2, 0, 0, 3], [0, 0, 0, 0], [0, 0, 4, 0], [5, 0, 6, 0]]


@pytest.mark.parametrize("matrix", [MATRIX, [[0, 0], [0, -2.5]], np.eye(3), [[0, 7, 0]]])
def test_arrays_are_those_of_torch(matrix):
    arrays = FormatExplorer(matrix).arrays
    dense = torch.as_tensor(np.asarray(matrix))
    coo, csr, csc = dense.to_sparse().coalesce(), dense.to_sparse_csr(), dense.to_sparse_csc()
    assert [arrays["COO"][name] for name in ("row_of", "column_of")] == coo.indices().tolist()
    assert arrays["COO"]["value"] == coo.values().tolist()
    assert arrays["CSR"]["row_starts"] == csr.crow_indices().tolist()
    assert arrays["CSR"]["column_of"] == csr.col_indices().tolist()
    assert arrays["CSR"]["value"] == csr.values().tolist()
    assert arrays["CSC"]["column_starts"] == csc.ccol_indices().tolist()
    assert arrays["CSC"]["row_of"] == csc.row_indices().tolist()
    assert arrays["CSC"]["value"] == csc.values().tolist()


def test_every_format_is_readable_and_operable_without_a_script():
    page = FormatExplorer(MATRIX)._repr_html_()
    assert len(page) < LIMIT_BYTES
    assert not re.search(r"https?://|<[^>]* (hidden|on\w+=)", page)
    assert page.count("<details") == page.count("<summary") == 3 and page.count(" open ") == 1
    assert len(set(re.findall(r'<details name="([^"]+)"', page))) == 1, "one format is open at a time"
    assert page.count('type="range"') == page.count("<label") == page.count("<output") == 3
    for name in ("row_of, 6 numbers", "row_starts, 6 numbers", "column_starts, 5 numbers"):
        assert name in page
    assert all("scope=" in head for head in re.findall("<th[^>]*>", page))


def test_two_explorers_do_not_share_names():
    explorer = FormatExplorer(MATRIX)
    first, second = (set(re.findall(r' (?:id|name)="([^"]+)"', explorer._repr_html_())) for _ in range(2))
    assert len(first) == 4 and not first & second


def test_says_where_an_entry_is():
    explorer = FormatExplorer(MATRIX)
    assert explorer.say("COO", 1) == "entry 1: row_of[1] = 1, column_of[1] = 0, value[1] = 2"
    assert explorer.say("CSR", 3).startswith("entry 3: row 3 holds the entries from row_starts[3] = 3 up to, ")
    assert explorer.say("CSC", 1).endswith("column_starts[1] = 2; row_of[1] = 4, value[1] = 5")
    page = explorer._repr_html_()
    for kind in explorer.arrays:
        assert all(explorer.say(kind, entry) in page for entry in range(6))


def test_marks_the_cells_of_an_entry():
    page = FormatExplorer(MATRIX)._repr_html_()
    csr = page.split("<details")[2]
    starts = csr.split("row_starts")[1].split("</table>")[0]
    # the starts of rows 0 to 4 and the end: each has to do with the entries of two rows; row 2 holds none
    assert re.findall(r'<td(?: data-entries="([^"]*)")?', starts) == ["0", "0 1 2", "1 2", "3", "3 4 5", "4 5"]
    assert csr.split("the matrix")[1].split("</table>")[0].count('class="marked"') == 1


def test_refuses_what_it_cannot_show(monkeypatch):
    with pytest.raises(ValueError, match=r"two dimensions, got shape \(3,\)"):
        FormatExplorer([1, 2, 3])
    with pytest.raises(ValueError, match="holds no entry that is not zero"):
        FormatExplorer([[0, 0]])
    monkeypatch.setattr("subspace_lib.press.widgets.LIMIT_BYTES", 100)
    with pytest.raises(ValueError, match="the page would take"):
        FormatExplorer(MATRIX)
