"""Run chapters as Colab does: from their own bytes, in an empty folder, with no checkout on the path.

    python tests/colab.py REPOSITORY [CHAPTER ...]

The set-up cell fetches the library as it does on Colab, only that git is told to find the repository's address in
REPOSITORY. Needs nothing but what Colab has: this runs in Colab's own image too.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PINNED_BY_COLAB = ("torch", "numpy", "ipywidgets")
LIVE_SLIDER = """
from matplotlib import pyplot as plt
from subspace_lib.press.widgets import FrameSlider

def line(slope):
    figure, ax = plt.subplots()
    ax.plot([0, slope])
    return figure

picture, choice = FrameSlider(line, [1, 2], label="slope", alt="a line").live([1, 2, 3]).children
drawn = picture.value
choice.value = 3
assert picture.value != drawn, "the live slider did not draw"
"""


def serve(repository: Path, folder: Path) -> None:
    """Let git find the book's address in a copy of the repository, which has the tag that the chapters ask for."""
    address = re.search(r"(?m)^  url: (\S+)$", (repository / "_config.yml").read_text())[1]
    version = re.search(r'__version__ = "(.+)"', (repository / "subspace_lib" / "__init__.py").read_text())[1]
    copy = folder / "served.git"
    environment = os.environ | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    for command in (["clone", "--quiet", "--bare", repository, copy], ["-C", copy, "tag", "--force", f"v{version}"]):
        subprocess.run(["git", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    settings = {"safe.directory": "*", f"url.{copy.as_uri()}.insteadOf": address}
    os.environ["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        os.environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}


def run(chapter: Path, folder: Path) -> float:
    """Run one chapter at its smallest size in a new folder; give the seconds."""
    notebook = nbformat.reads(
        chapter.read_text(encoding="utf-8").replace('PROFILE = \\"quick\\"', 'PROFILE = \\"smoke\\"'), 4
    )
    notebook.cells.append(nbformat.v4.new_code_cell(LIVE_SLIDER))
    place = folder / chapter.stem
    place.mkdir()
    started = time.monotonic()
    at = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=at).execute()
    library = place / "subspaces" / "subspace_lib"
    if not library.is_dir():
        sys.exit(f"{chapter.stem} did not fetch the library")
    return time.monotonic() - started


def main() -> None:
    """Run the chapters that are named, or all."""
    repository = Path(sys.argv[1]).resolve()
    if importlib.util.find_spec("subspace_lib"):
        sys.exit("subspace_lib is on the path, so this would not be as on Colab")
    before = {name: importlib.metadata.version(name) for name in PINNED_BY_COLAB}
    chapters = [repository / "book" / f"{name}.ipynb" for name in sys.argv[2:]]
    chapters = chapters or sorted((repository / "book").glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        serve(repository, Path(folder))
        with ThreadPoolExecutor(2) as side_by_side:
            for chapter, seconds in zip(chapters, side_by_side.map(run, chapters, repeat(Path(folder))), strict=True):
                print(f"{chapter.stem} ... {seconds:.0f} s", flush=True)
    after = {name: importlib.metadata.version(name) for name in PINNED_BY_COLAB}
    if after != before:
        sys.exit(f"the chapters changed what Colab had: {before} became {after}")
    print(json.dumps(before))


if __name__ == "__main__":
    main()
