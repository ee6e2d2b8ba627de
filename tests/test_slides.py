"""Slides: a page for each session of the plan, with the questions and figures of its chapters and without answers."""

import re
from pathlib import Path

from subspace_lib.press.slides import FIGURES, sessions, slides_of, write_slides

BOOK = Path(__file__).resolve().parents[1] / "book"
FIGURE = {"figure": {"caption": "The cost of $d$ directions."}, "image": {"alt": "A curve"}}


def code(*tags: str) -> dict:
    png = {"data": {"image/png": "AAAA\n"}}
    return {"cell_type": "code", "source": "", "outputs": [png], "metadata": {"mystnb": FIGURE, "tags": [*tags]}}


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "source": text, "metadata": {}}


def test_every_session_has_chapters_and_a_link_to_its_slides() -> None:
    plan = sessions(BOOK / "instructors.md")
    assert len(plan) == 6
    assert all((BOOK / f"{name}.ipynb").is_file() for _, names in plan for name in names) and all(n for _, n in plan)
    linked = re.findall(r'href="slides/(session_\d)\.html"', (BOOK / "instructors.md").read_text(encoding="utf-8"))
    assert linked == [f"session_{number}" for number in range(1, 7)]


def test_a_chapter_gives_its_question_its_first_figures_and_no_answer() -> None:
    asked = "## Predict first\n\nHow many? {cite:p}`li2018`\n\n<details><summary>Then</summary>Answer: 7</details>"
    cells = [markdown("# Title\n\n**Is it so?**\n\nText.\n\n## Aims"), markdown(asked), code("hide-cell")]
    cells += [markdown("It was 7."), markdown('## A misconception\n\n**"Seven."**\n\nNo.\n\n## Next')]
    works = {"li2018": ("Li et al.", "2018", "https://arxiv.org/abs/1804.08838")}
    question, *figures, claim = slides_of({"cells": cells + [code()] * (FIGURES + 1)}, works)
    assert all(said in question for said in ("Title", "Is it so?", "How many?", "Li et al., 2018"))
    assert not any(answer in question for answer in ("7", "Text", "Aims"))
    assert "Seven" in claim and "No" not in claim and "Next" not in claim
    assert len(figures) == FIGURES
    assert all('alt="A curve"' in one and "<mi>d</mi>" in one and "base64,AAAA" in one for one in figures)


def test_the_pages_of_the_book_have_all_their_slides_and_ask_nobody(tmp_path: Path) -> None:
    pages = write_slides(BOOK, tmp_path / "none", tmp_path / "slides")
    assert [page.name for page in pages] == [f"session_{number}.html" for number in range(1, 7)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("<section>") >= 2 and "<details" not in text and "<script" not in text
        assert not re.search(r"""<(?:img|link)[^>]*(?:src|href)=["']?(?:https?:)?//""", text)
        links = re.findall(r'href="\.\./([\w-]+)\.html', text)
        assert all(list(BOOK.glob(f"{name}.*")) for name in links)
