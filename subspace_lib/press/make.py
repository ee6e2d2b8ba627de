"""What ``make`` does in its environment, on any system: other programs, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from subspace_lib.press.chapters import BookError

LINT = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("codespell_lib",))
TASKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lint": LINT,
    "test": (
        *LINT,
        ("pytest", "-n", "2", "-m", "not browser"),
        ("pytest", "--nbmake", "--nbmake-timeout=1800", "book"),
    ),
    "check-pages": (("pytest", "-m", "browser", "tests"),),
}
"""Targets of make, and the modules that each runs."""
ON_COLAB = ("ipywidgets==7.7.1", "ipython_genutils")
"""What Colab has in another version than this environment."""


def run_task(name: str, root: Path) -> None:
    """Run the programs of a target of make, up to the first that fails.

    Raises
    ------
    BookError
        If one fails; the message names it.
    ValueError
        If this is no checkout.
    """
    _check_checkout(root)
    for command in TASKS[name]:
        _run([sys.executable, "-m", *command], root, {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"})


def run_as_colab(root: Path) -> None:
    """Run every chapter with the packages of this environment, but without the checkout, and with Colab's ipywidgets.

    Raises
    ------
    BookError
        If a chapter fails.
    ValueError
        If this is no checkout.
    """
    _check_checkout(root)
    packages = root / ".venv" / "colab"
    if not packages.is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*install, "--target", str(packages), *ON_COLAB], root, {})
    told = {"SUBSPACE_DATA": os.environ.get("SUBSPACE_DATA", str(root / "data")), "OMP_NUM_THREADS": "1"}
    told["PYTHONPATH"] = os.pathsep.join((str(packages), sysconfig.get_path("purelib")))
    _run([sys._base_executable, str(root / "tests" / "colab.py"), str(root)], root, told)  # type: ignore[attr-defined]


def _check_checkout(root: Path) -> None:
    if not (root / "Makefile").is_file():
        raise ValueError(f"no Makefile in {root}; this command works in a checkout of the repository")


def _run(command: Sequence[str], root: Path, told: Mapping[str, str]) -> None:
    line = " ".join(command[1:]).removeprefix("-m ")
    print(f"=== {line}", flush=True)
    if code := subprocess.run(command, cwd=root, env={**os.environ, **told}, check=False).returncode:
        raise BookError(f"{line} ended with exit code {code}")
