"""Chapters as Colab opens them; `make colab` runs them all, beside Colab's own version of ipywidgets."""

import os
import re
import site
import subprocess
import sys
from pathlib import Path

from subspace_lib import __version__

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys._base_executable, str(ROOT / "tests" / "colab.py"), str(ROOT), *arguments]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


def test_a_chapter_fetches_the_library_into_an_empty_folder() -> None:
    # As PYTHONPATH the packages are there, and the editable install of the checkout is not.
    done = run("scorecard", path=site.getsitepackages()[0])
    assert done.returncode == 0, done.stderr
    assert re.match(r"scorecard \.\.\. \d+ s\n\{\"torch\": ", done.stdout)


def test_a_checkout_on_the_path_is_refused() -> None:
    done = run("scorecard", path=f"{site.getsitepackages()[0]}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "subspace_lib is on the path" in done.stderr


def test_chapters_ask_for_the_tag_of_this_version() -> None:
    for chapter in (ROOT / "book").glob("*.ipynb"):
        assert f'\\"v{__version__}\\"' in chapter.read_text(encoding="utf-8"), chapter.name
