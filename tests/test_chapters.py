"""The lint of the chapters: what every one of them must have, and what the book and its front matter agree on."""

import ast
import builtins
import json
import re
import symtable
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from subspace_lib.press.chapters import PARAMETER, chapter_names
from subspace_lib.press.times import PLACEHOLDER, length_of
from subspace_lib.study.records import published

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
NUMBERED = sorted(BOOK.glob("[0-9][0-9]_*.ipynb"))
URL = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
SECTIONS = ["what you will be able to do", "prerequisites", "predict first", "misconception", "pitfall"]
SECTIONS += ["quiz", "take away", "where next"]
SHORT = {"01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11"}
FOLDED = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
DRAWING = {"figure", "hist", "imshow", "plot", "scatter", "show", "subplot_mosaic", "subplots"}

Cell = dict[str, Any]


def cells_of(path: Path, kind: str | None = None) -> list[Cell]:
    """The cells of a chapter, of one kind or all, with their source as one string."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
    return [cell for cell in cells if kind in (None, cell["cell_type"])]


def tags_of(cell: Cell) -> list[str]:
    return cell["metadata"].get("tags", [])


def prose_of(path: Path) -> str:
    """The text of a page or chapter, without its code."""
    if path.suffix != ".ipynb":
        return re.sub(r"(?ms)^(`{3,}|~{3,}).*?^\1", "", path.read_text(encoding="utf-8"))
    return "\n\n".join(cell["source"] for cell in cells_of(path, "markdown"))


def headings_of(text: str) -> list[str]:
    """Headings, and titles of admonitions."""
    return re.findall(r"(?m)^(?:#+|:{3,}\{[\w-]+\}|`{3,}\{[\w-]+\}) +(.+)$", text)


def top_level_calls(source: str) -> Iterator[ast.Call]:
    """The calls that run when the cell runs: not those inside a function."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def draws(source: str) -> bool:
    """Whether the cell shows a figure of matplotlib."""
    names = [ast.unparse(call.func) for call in top_level_calls(source)]
    return any(name.startswith("plt.") and name[4:] in DRAWING for name in names)


pages = pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)


def test_there_are_chapters() -> None:
    assert NUMBERED


def test_every_chapter_is_in_the_table_of_contents() -> None:
    assert [name for name in chapter_names(BOOK) if name[:2].isdigit()] == [path.stem for path in NUMBERED]


@pages
def test_notebook_is_clean(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in cells_of(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "outputs are not committed"
        assert "raises-exception" not in tags_of(cell), "papermill stops there; show the error with try and except"


@pages
def test_parameters(path: Path) -> None:
    first = cells_of(path, "code")[0]
    tagged = [cell for cell in cells_of(path) if "parameters" in tags_of(cell)]
    assert tagged == [first], "the first code cell, and only that, is tagged parameters"
    assignments = ast.parse(first["source"]).body
    assert all(isinstance(line, ast.Assign) and len(line.targets) == 1 for line in assignments)
    assert tuple(ast.unparse(line.targets[0]) for line in assignments) == (PARAMETER,)
    assert ast.literal_eval(assignments[0].value) == "quick"
    assert first["metadata"]["nbmake"] == {"mock": {"PROFILE": "smoke"}}


@pages
def test_sections(path: Path) -> None:
    text = prose_of(path)
    assert text.startswith("# "), "a chapter starts with its title"
    assert len(re.findall(r"(?m)^# ", text)) == 1, "one title a chapter"
    headings = "\n".join(headings_of(text)).lower()
    assert [name for name in SECTIONS if name not in headings] == []
    assert re.search(rf"{PLACEHOLDER}|see the head of the page|\d+( to \d+)? minutes", text), "no place for the time"
    assert "GPU" in text, "no line on the GPU"


@pytest.mark.parametrize("path", [path for path in NUMBERED if path.stem[:2] in SHORT], ids=lambda path: path.stem)
def test_one_path_through_a_chapter(path: Path) -> None:
    """What a student reads before unfolding anything is short: prose, code, figures, minutes."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert length_of(notebook).minutes < 35.5, "the page would say more than 35 minutes"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":  # prose is neither a table nor a formula
            cell["source"] = re.sub(r"(?ms)^\|.*?$|\$\$.*?\$\$|\$[^$]+\$", "", "".join(cell["source"]))
    laboratories = sum("Lab(" in "".join(cell["source"]) for cell in cells_of(path, "code"))
    length = length_of(notebook)
    assert length.words <= 2500
    assert length.lines <= 150
    assert length.longest <= 30
    assert length.median <= 10
    assert length.figures - laboratories <= 5


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell uses, inside its functions too, and those that it gives."""
    uses, gives = set(), set()
    tables = [symtable.symtable(source, "cell", "exec")]
    while tables:
        table = tables.pop()
        for symbol in table.get_symbols():
            outside = table.get_type() == "module" or symbol.is_global()
            if outside and symbol.is_referenced():
                uses.add(symbol.get_name())
            if outside and (symbol.is_assigned() or symbol.is_imported()):
                gives.add(symbol.get_name())
        tables += table.get_children()
    return uses, gives


@pages
def test_what_a_reader_sees_uses_what_a_reader_has_seen(path: Path) -> None:
    """A name in a visible cell comes from a visible cell above it, but for the checks of exercises."""
    seen = set(dir(builtins))
    for cell in cells_of(path, "code"):
        if "setup" in tags_of(cell) or not FOLDED & set(tags_of(cell)):
            uses, gives = names_in(cell["source"])
            unknown = sorted(name for name in uses - gives - seen if not re.fullmatch(r"check_\d+", name))
            assert unknown == [], f"defined in a folded cell, used in {cell['id']}: {unknown}"
            seen |= gives


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_code_fits_the_column(path: Path) -> None:
    """A page of 1280 pixels shows 89 characters of a line, in a fold too (``book.css``)."""
    lines = [line for cell in cells_of(path, "code") for line in cell["source"].splitlines()]
    assert [line for line in lines if len(line) > 88] == []


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_sources_have_names(path: Path) -> None:
    """The keys of data/published choose rows; captions, legends and prose call a source by its name."""
    keys = "|".join({row["source"] for row in published()})
    text = re.sub(r"\bsource\W{1,10}\w+", "", path.read_text(encoding="utf-8"))
    assert re.findall(rf".*\b(?:{keys})\b.*", text) == []


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_that_are_tables_are_tables(path: Path) -> None:
    """What is padded to a width when it is printed wants to be a column."""
    for cell in cells_of(path, "code"):
        printed = [c for c in ast.walk(ast.parse(cell["source"])) if isinstance(c, ast.Call)]
        printed = [call for call in printed if ast.unparse(call.func) == "print"]
        specs = [n.format_spec for c in printed for n in ast.walk(c) if isinstance(n, ast.FormattedValue)]
        written = [ast.unparse(spec).strip("f'\"") for spec in specs if spec is not None]
        assert [one for one in written if re.match(r"[<>^]?[1-9]", one)] == [], cell["id"]


@pages
def test_exercises(path: Path) -> None:
    exercises: list[list[Cell]] = []
    numbers: list[int] = []
    inside = False
    for cell in cells_of(path):
        if cell["cell_type"] == "markdown" and headings_of(cell["source"]):
            title = re.search(r"(?m)^#+ +Exercise (\d+)", cell["source"])
            inside = title is not None
            if title:
                numbers.append(int(title[1]))
                exercises.append([])
        if inside:
            exercises[-1].append(cell)
    assert numbers == list(range(1, len(exercises) + 1))
    assert len(exercises) >= 3
    assert re.search(r"(?mi)^#+ Exercise.*open", prose_of(path)), "one exercise is open, and says so"
    for exercise in exercises:
        title = headings_of(exercise[0]["source"])[-1]
        assert re.search(r"<details>\s*<summary>Hint", exercise[0]["source"]), f"no hint: {title}"
        hidden = [cell for cell in exercise if cell["cell_type"] == "code" and "hide-cell" in tags_of(cell)]
        assert hidden and len(hidden[0]["source"].splitlines()) > 1, f"no hidden solution: {title}"


@pages
def test_quiz(path: Path) -> None:
    quiz = re.search(r"(?ms)^## Quiz$(.*?)(?=^## |\Z)", prose_of(path))
    assert quiz, "no section '## Quiz'"
    questions = re.split(r"(?m)^\*\*\d+\. ", quiz[1])[1:]
    assert len(questions) >= 4
    for question in questions:
        answers = re.findall(r"(?s)<details>\s*<summary>(.+?)</summary>(.+?)</details>", question)
        assert len(answers) >= 2, f"answers that explain themselves: {question.splitlines()[0]}"


@pages
def test_figures_have_alt_text_name_and_caption(path: Path) -> None:
    for cell in cells_of(path, "code"):
        if draws(cell["source"]):
            settings = cell["metadata"].get("mystnb", {})
            figure = settings.get("figure", {})
            found = [settings.get("image", {}).get("alt"), figure.get("name"), figure.get("caption")]
            assert all(found), f"alt, name, caption are {found} in the cell\n{cell['source']}"
        if any(ast.unparse(call.func).endswith("FrameSlider") for call in top_level_calls(cell["source"])):
            assert re.search(r"\balt=", cell["source"]), f"no alt text in the cell\n{cell['source']}"


def test_figure_names_are_unique() -> None:
    cells = [cell for path in BOOK.glob("*.ipynb") for cell in cells_of(path, "code")]
    named = Counter(cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells)
    assert [name for name, count in named.items() if name and count > 1] == []


def test_setup_cells_are_the_same_and_name_the_repository() -> None:
    setups = {cell["source"] for path in NUMBERED for cell in cells_of(path, "code") if "setup" in tags_of(cell)}
    assert all(any("setup" in tags_of(cell) for cell in cells_of(path, "code")) for path in NUMBERED)
    assert len(setups) == 1
    assert f'"{URL}"' in setups.pop()


def test_citations_are_in_the_references() -> None:
    known = set(re.findall(r"(?m)^@\w+\{([^,\s]+)", (BOOK / "references.bib").read_text()))
    for path in [*BOOK.glob("*.md"), *BOOK.glob("*.ipynb")]:
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", prose_of(path)):
            assert {key.strip() for key in keys.split(",")} <= known, path.name


def test_the_repository_has_one_address() -> None:
    owner_and_name = URL.removeprefix("https://github.com/")
    for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"):
        assert URL in (ROOT / name).read_text(), name
    paths = [*ROOT.glob("*.md"), ROOT / "CITATION.cff", ROOT / "pyproject.toml", *BOOK.glob("*.md")]
    for path in [*paths, *BOOK.glob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        for repository, file in re.findall(
            r"colab\.research\.google\.com/github/([^/\s]+/[^/\s]+)/blob/notebooks/([^\s)\"]+)", text
        ):
            assert repository == owner_and_name, path.name
            assert (BOOK / file).exists(), f"{path.name} opens {file} in Colab"
        short = re.escape(owner_and_name.split("/")[1])
        for repository in re.findall(rf"github\.com/([\w.-]+/{short})\b", text):
            assert repository == owner_and_name, path.name


def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text())
    exec("\n".join(blocks), {})
    assert "trained numbers instead of" in capsys.readouterr().out


def test_the_page_on_own_models_shows_the_file_that_it_offers() -> None:
    [cell] = [cell for cell in cells_of(BOOK / "own_model.ipynb", "code") if cell["id"] == "measure"]
    assert cell["source"] == (BOOK / "_static" / "own_model.py").read_text(encoding="utf-8").strip()


GREEK = "alpha|beta|gamma|delta|epsilon|eta|theta|kappa|lambda|mu|nu|nabla|pi|rho|sigma|tau|phi|varphi|chi|omega"
GREEK_LETTER = re.compile(rf"\\((?:{GREEK})(?![A-Za-z])|(?:Gamma|Delta|Theta|Lambda|Pi|Sigma|Phi|Omega)(?![A-Za-z]))")


def letters_in(text: str) -> set[str]:
    """The letters of all formulas of a text; words within formulas are none."""
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)
    found = set()
    for displayed, inline in re.findall(r"(?s)\$\$(.*?)\$\$|\$([^$]+)\$", text):
        formula = re.sub(r"\\(?:text|mathrm|operatorname|begin|end) *(?:\{[^}]*\}|\w)", "", displayed or inline)
        formula = re.sub(r"\\mathbb *\{?\w\}?", "", formula)  # an expectation
        found |= set(GREEK_LETTER.findall(formula)) | set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", formula)))
    return found


def test_a_link_to_a_chapter_says_more_than_its_number() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*BOOK.glob("*.md"), *BOOK.glob("*.ipynb"))]
    said = [words for text in texts for words in re.findall(r"\[([^]]+)\]\(\d\d_\w+\.ipynb", text)]
    assert len(said) > 100
    assert [words for words in said if re.fullmatch(r"(?i)(chapter )?[\d.]+", words)] == []


def letters_of_notation() -> list[list[list[str]]]:
    """The symbols of each row of each table of the page; the first section has no table."""
    text = (BOOK / "notation.md").read_text(encoding="utf-8").partition("## Words")[0]
    tables = (re.findall(r"(?m)^\| (\$.*?) \|", part) for part in text.split("\n## "))
    return [[re.findall(r"\$[^$]+\$", row) for row in rows] for rows in tables]


def test_a_cell_with_a_named_figure_shows_nothing_else() -> None:
    both = [
        f"{path.name}: {cell['id']}"
        for path in BOOK.glob("*.ipynb")
        for cell in cells_of(path, "code")
        if "figure" in cell["metadata"].get("mystnb", {})
        and re.search(r"\b(Table|Markdown)\(", "".join(cell["source"]))
    ]
    assert both == [], "Sphinx gives each output the name of the figure; show the table in a cell of its own"


def test_a_letter_has_one_meaning_and_stands_in_the_notation() -> None:
    _, everywhere, single, guest = letters_of_notation()
    symbols = [symbol for row in everywhere + single for symbol in row]
    assert [symbol for symbol, count in Counter(symbols).items() if count > 1] == []
    own = {letter for symbol in symbols for letter in letters_in(symbol)}
    guests = own | {letter for row in guest for symbol in row for letter in letters_in(symbol)}
    for path in BOOK.glob("*.ipynb"):
        figures = (cell["metadata"].get("mystnb", {}).get("figure", {}) for cell in cells_of(path))
        text = "\n\n".join([prose_of(path), *(figure.get("caption", "") for figure in figures)])
        unknown = letters_in(text) - (guests if path.stem.startswith("11") else own)
        assert unknown == set(), f"letters of {path.name} that the page of notation lacks"
    assert letters_in(r"$$\Theta_{ij} = \mathrm{kl}(q)$$ and $\nabla_z$, `$x$`") == {
        "Theta",
        "i",
        "j",
        "q",
        "nabla",
        "z",
    }
