"""Execute the chapters and build the pages: what `make book` does."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from subspace_lib.press.chapters import BookError, Run, check_parameters, explain, keep, read_notebook, start, stop
from subspace_lib.press.pages import build_pages
from subspace_lib.press.status import CLEAN, status_tables, write_executions
from subspace_lib.tasks.profiles import check_device, default_device, get_profile

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ("cpu", "cuda")
TOOLS = ("build.py", "chapters.py", "pages.py", "status.py", "__main__.py")  # a change in these changes no chapter


def build_book(
    profile: str = "quick",
    device: str | None = None,
    only: Sequence[str] = (),
    jobs: int | None = None,
    root: Path = ROOT,
) -> Path:
    """Execute the chapters that changed and build the pages.

    Parameters
    ----------
    profile : str
        The size of the live cells: a name in `subspace_lib.tasks.profiles.PROFILES`.
    device : {"cpu", "cuda"}, optional
        Where the chapters train; by default a GPU if there is one.
    only : sequence of str
        Chapters to look at; the others stay as they were last executed. All by default.
    jobs : int, optional
        Chapters executed at a time; by default 2 on a CPU, 1 on a GPU.
    root : Path
        The checkout.

    Returns
    -------
    Path
        The front page.

    Raises
    ------
    ValueError
        If a profile, device or chapter is not known, or a chapter takes no PROFILE.
    BookError
        If a chapter or the build of the pages fails. The pages of the last build are still there.
    """
    get_profile(profile)
    if not (root / "book" / "_toc.yml").is_file():
        raise ValueError(f"no book/_toc.yml in {root}; the book is built in a checkout of the repository")
    device = check_device(device) if device else default_device()
    cores = os.cpu_count() or 1
    if jobs is None:
        jobs = 1 if device == "cuda" else min(2, cores)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    names = chapter_names(root / "book")
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"unknown chapter {unknown[0]!r}; choose from: {', '.join(names)}")

    executed = root / "_build" / "executed"
    executed.mkdir(parents=True, exist_ok=True)
    standins = find_standins()
    record = describe(root, profile, device, standins)
    wanted = {
        name: digest_of(root, name, [profile, device, version("torch"), *standins])
        for name in names
        if not only or name in only or not (executed / f"{name}.ipynb").exists()
    }
    changed = [name for name, digest in wanted.items() if digest != stored_digest(executed, name)]
    for name in changed:
        check_parameters(root / "book" / f"{name}.ipynb")

    jobs = max(1, min(jobs, len(changed)))
    environment = os.environ | {"SUBSPACE_DEVICE": device, "OMP_NUM_THREADS": str(max(1, cores // jobs))}
    if standins:
        environment["SUBSPACE_OFFLINE"] = "1"
    place = {name: f"[{number}/{len(names)}] {name}" for number, name in enumerate(names, start=1)}
    print(f"{len(names)} chapters, profile {profile}, {device}, {jobs} at a time", flush=True)
    for name in names:
        if name not in changed:
            print(f"{place[name]} ... unchanged", flush=True)
    with TemporaryDirectory(prefix="running-", dir=root / "_build") as folder:
        for run in execute(changed, root / "book", profile, environment, jobs, Path(folder)):
            if run.process.returncode != 0:
                raise BookError(f"{place[run.name]} failed after {run.seconds:.0f} s\n{explain(run, executed)}")
            mine = {"digest": wanted[run.name], "seconds": round(run.seconds, 1)}
            keep(run, executed, mine | record)
            print(f"{place[run.name]} ... {run.seconds:.0f} s", flush=True)

    copy_pages(root / "book", executed, names)
    executions = root / "data" / "executions_cuda.json"
    if device == "cuda" and profile == "full":
        write_executions(executions, executed, names)
    status = executed / "status.md"
    if status.exists():
        status.write_text(
            status.read_text(encoding="utf-8") + status_tables(executed, names, executions), encoding="utf-8"
        )
    return build_pages(root, executed)


def chapter_names(book: Path) -> list[str]:
    """The notebooks of the table of contents, in its order."""
    import yaml

    def files(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            yield from [node["file"]] if "file" in node else []
            yield from (name for value in node.values() for name in files(value))
        elif isinstance(node, list):
            yield from (name for item in node for name in files(item))

    try:
        contents = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"book/_toc.yml is not YAML: {' '.join(str(error).split())}") from None
    names = list(files(contents))
    for name in names:
        if not any((book / f"{name}{ending}").is_file() for ending in (".ipynb", ".md")):
            raise ValueError(f"book/_toc.yml names {name!r}, but book/ has no {name}.ipynb or {name}.md; add one")
    return [name for name in names if (book / f"{name}.ipynb").is_file()]


def find_standins() -> list[str]:
    """Names of the data sets for which a stand-in serves. What is missing is fetched here, once."""
    from subspace_lib.tasks.datasets import load_dataset

    names = [load_dataset(name).name for name in ("mnist", "cifar10")]
    return [name for name in names if name.endswith("-standin")]


def describe(root: Path, profile: str, device: str, standins: list[str]) -> dict[str, Any]:
    """What runs where: kept in every executed notebook."""
    import torch

    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    packages = ("torch", "numpy", "matplotlib", "papermill", "jupyter-book")
    return {
        "profile": profile,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "standins": standins,
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
    }


def digest_of(root: Path, name: str, circumstances: Iterable[str]) -> str:
    """One word that changes when anything changes that a chapter's outputs depend on."""
    files = [root / "book" / f"{name}.ipynb"]
    files += [path for path in sorted((root / "subspace_lib").rglob("*.py")) if path.name not in TOOLS]
    for folder in ("results", "published"):
        files += [path for path in sorted((root / "data" / folder).rglob("*")) if path.is_file()]
    digest = hashlib.sha256("\n".join(circumstances).encode())
    for path in files:
        digest.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def stored_digest(executed: Path, name: str) -> str | None:
    """The digest that a chapter had when it was last executed; None if it never was."""
    path = executed / f"{name}.ipynb"
    if os.environ.get("RERUN") == "1" or not path.exists():
        return None
    try:
        digest: str | None = read_notebook(path)["metadata"]["subspace"]["digest"]
    except (ValueError, LookupError, TypeError):  # damaged, so it is made again
        return None
    return digest


def execute(
    names: Sequence[str], book: Path, profile: str, environment: Mapping[str, str], jobs: int, folder: Path
) -> Iterable[Run]:
    """Execute chapters, `jobs` at a time, and yield each as it ends; whatever happens, none runs on."""
    waiting, running = list(names), list[Run]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(start(book / f"{waiting.pop(0)}.ipynb", profile, environment, folder))
            time.sleep(0.1)
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                yield run
    finally:
        stop(running)


def copy_pages(book: Path, executed: Path, names: Iterable[str]) -> None:
    """Put everything else of the book beside the executed chapters, and take away what is gone."""
    chapters = {f"{name}.ipynb" for name in names}
    for path in executed.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in chapters and not path.name.endswith(".failed.ipynb"):
            path.unlink()
    for path in book.iterdir():
        if path.is_dir():
            shutil.copytree(path, executed / path.name)
        elif path.name not in chapters:
            shutil.copy2(path, executed)
    (executed / CLEAN).mkdir()
    for name in sorted(chapters):
        shutil.copy2(book / name, executed / CLEAN)
