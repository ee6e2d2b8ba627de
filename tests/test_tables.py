"""A table is a table: headings with a scope, numbers on the right, nothing that a cell holds becomes markup."""

import re
from html.parser import HTMLParser

import pytest

from subspace_lib.press.tables import Table

ROWS = [{"P": "one_hot", "d": 5050, "accuracy": 0.45678}, {"P": "<b>&", "d": 50, "loss": 1.0}]


class Cells(HTMLParser):
    """Collects the cells of a table as (tag, attributes, text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[list] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("th", "td", "caption"):
            self.found.append([tag, dict(attributes), ""])
        else:
            assert tag in ("div", "table", "thead", "tbody", "tr"), f"markup out of a cell: {tag}"

    def handle_data(self, data):
        self.found[-1][2] += data


def test_cells_scopes_and_alignment():
    found = Cells(Table(ROWS, "From <x>.", {"accuracy": ".3f"})._repr_html_()).found
    assert [text for _, _, text in found] == [
        "From <x>.", "P", "d", "accuracy", "loss", "one_hot", "5,050", "0.457", "", "<b>&", "50", "", "1",
    ]  # fmt: skip
    assert [a["scope"] for tag, a, _ in found if tag == "th"] == ["col"] * 4 + ["row"] * 2
    assert ["right" in a["style"] for _, a, _ in found[1:5]] == [False, True, True, True]


@pytest.mark.parametrize(
    ("cell", "how", "written"),
    [
        (-0.0004, "+.3f", "0.000"),
        (0.0, "+.0%", "0%"),
        (-0.0006, "+.3f", "-0.001"),
        (0.04, "+.2f", "+0.04"),
        ("-0.000 (-0.966 to +0.004; 3 pairs): open", None, "0.000 (-0.966 to +0.004; 3 pairs): open"),
        ("+0.000, open", None, "0.000, open"),
        ("80+0+25, 1e-05", None, "80+0+25, 1e-05"),
    ],
)
def test_a_zero_has_no_sign(cell, how, written):
    found = Cells(Table([{"gain": cell}], "Runs.", how and {"gain": how})._repr_html_()).found
    assert found[-1][2] == written


def test_numbers_stand_on_the_right_though_they_come_as_words():
    row = {"gain": "+0.041", "d": "12,000", "error": "3.71e-09", "share": "12%", "range": "1 to 2", "sure": True}
    found = Cells(Table([row], "Runs.")._repr_html_()).found[1:7]
    assert ["right" in attributes["style"] for _, attributes, _ in found] == [True] * 4 + [False] * 2


def test_a_wide_table_is_moved_by_keyboard():
    assert re.match(r'<div [^>]*tabindex="0"[^>]*overflow-x: auto', Table(ROWS, "Runs.")._repr_html_())


def test_text_lines_up():
    lines = repr(Table(ROWS, "Runs.")).splitlines()
    assert len(lines) == 3 and len({line.index("|") for line in lines}) == 1


@pytest.mark.parametrize(("rows", "formats"), [([], {}), ([{}], {}), (ROWS, {"accuracies": ".3f"})])
def test_refused(rows, formats):
    with pytest.raises(ValueError, match="a table needs|'accuracies' to format; the columns are: P, d, accuracy, loss"):
        Table(rows, "Runs.", formats)
