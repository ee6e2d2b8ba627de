"""The book in two steps, which need not run on one machine: execute the chapters, and build the pages from them."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from subspace_lib.checks import says
from subspace_lib.files import replaced_atomically
from subspace_lib.press.chapters import (
    BookError,
    book_of,
    chapter_names,
    check_apart,
    check_parameters,
    digest_of,
    record_of,
)
from subspace_lib.press.execution import LIMIT, execute, explain, keep, running_folder
from subspace_lib.press.pages import build_pages
from subspace_lib.press.status import recorded_executions, write_executions
from subspace_lib.processes import commit
from subspace_lib.tasks.profiles import check_device, default_device, get_profile

ROOT = Path(__file__).resolve().parents[2]


def build_book(
    profile: str = "quick",
    device: str | None = None,
    only: Sequence[str] = (),
    jobs: int | None = None,
    limit: float = LIMIT,
    root: Path = ROOT,
) -> Path:
    """Execute the chapters that changed and build the pages; gives the front page.

    Parameters, and errors
    ----------------------
    As ``execute_chapters``; BookError also if the pages do not build. The pages of the last build are still there.
    """
    executed = root / "_build" / "executed"
    execute_chapters(executed, profile, device, only, jobs, limit, root)
    return pages_of(executed, root)


def pages_of(executed: Path, root: Path = ROOT) -> Path:
    """Build the pages from chapters that ``execute_chapters`` executed, here or elsewhere; gives the front page.

    Raises
    ------
    ValueError
        If the folder has no executed chapter of this book.
    BookError
        If the pages do not build.
    """
    names = chapter_names(book_of(root))
    records = {name: record for name in names if (record := record_of(executed, name))}
    if names and not records:
        raise ValueError(
            f"no executed chapter in {executed}; run `python -m subspace_lib execute --out {executed}` first"
        )
    own = root / "_build" / "executed"
    if executed.resolve() != own.resolve():
        for name in records:
            with replaced_atomically(own / f"{name}.ipynb") as temporary:
                shutil.copyfile(executed / f"{name}.ipynb", temporary)
    write_executions(root / "data" / "executions_cuda.json", records)
    return build_pages(root, own)


def execute_chapters(
    executed: Path,
    profile: str = "quick",
    device: str | None = None,
    only: Sequence[str] = (),
    jobs: int | None = None,
    limit: float = LIMIT,
    root: Path = ROOT,
) -> None:
    """Execute the chapters that changed since they were last executed into this folder, the longest first.

    Parameters
    ----------
    executed : Path
        Where the executed notebooks go, each with a record of what ran where.
    profile : str
        The size of the live cells: a name in `subspace_lib.tasks.profiles.PROFILES`.
    device : {"cpu", "cuda"}, optional
        Where the chapters train; by default a GPU if there is one.
    only : sequence of str
        The chapters to look at; all by default.
    jobs : int, optional
        Chapters executed at a time; by default 2 on a CPU, 1 on a GPU.
    limit : float
        Seconds that each chapter may take.
    root : Path
        The checkout.

    Raises
    ------
    ValueError
        If a profile, device or chapter is not known, a chapter takes no PROFILE, or the folder is that of the chapters.
    BookError
        If chapters failed; after all others were executed. The message says which, where and why.
    """
    get_profile(profile)
    names = chapter_names(book_of(root))
    check_apart(executed, root / "book")
    device = check_device(device) if device else default_device()
    cores = os.cpu_count() or 1
    jobs = jobs if jobs is not None else 1 if device.startswith("cuda") else min(2, cores)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    if not 0 < limit < math.inf:
        raise ValueError(f"the limit must be a positive number of seconds, not {limit}")
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"unknown chapter {unknown[0]!r}; choose from: {', '.join(names)}")

    executed.mkdir(parents=True, exist_ok=True)
    standins = find_standins()
    circumstances = [profile, device, version("torch"), *standins]
    digests = {name: digest_of(root, name, circumstances) for name in only or names}
    changed = [name for name in digests if not _is_done(executed, name, digests[name])]
    for name in changed:
        check_parameters(root / "book" / f"{name}.ipynb")
    seconds = recorded_executions(root / "data" / "executions_cuda.json")
    seconds |= {name: record for name in changed if (record := record_of(executed, name))}
    changed.sort(key=lambda name: -seconds.get(name, {}).get("seconds", float("inf")))

    jobs = max(1, min(jobs, len(changed)))
    environment = environment_for(device, max(1, cores // jobs), standins)
    record = describe(root, profile, device)
    place = {name: f"[{number}/{len(names)}] {name}" for number, name in enumerate(names, start=1)}
    print(f"{len(names)} chapters, profile {profile}, {device}, {jobs} at a time", flush=True)
    for name in names:
        if name not in changed:
            there = "unchanged" if name in digests else "not asked for"
            print(f"{place[name]} ... {there if record_of(executed, name) else 'was never executed'}", flush=True)
    failures = []
    with running_folder(executed) as folder:
        for run in execute(
            changed, root / "book", folder, profile=profile, environment=environment, jobs=jobs, limit=limit
        ):
            print(f"{place[run.name]} ... {'failed after ' if run.failed else ''}{run.seconds:.0f} s", flush=True)
            if run.failed:
                failures.append(f"{place[run.name]} failed after {run.seconds:.0f} s\n{explain(run, executed)}")
            else:
                keep(run, executed, {"digest": digests[run.name]} | record)
    if failures:
        raise BookError("\n".join(failures))


def find_standins() -> list[str]:
    """Names of the data sets for which a stand-in serves. What is missing is fetched here, once."""
    from subspace_lib.tasks.datasets import load_dataset

    names = [load_dataset(name).name for name in ("mnist", "cifar10")]
    return [name for name in names if name.endswith("-standin")]


def environment_for(device: str, threads: int, standins: Sequence[str]) -> dict[str, str]:
    """What a chapter is told: the device, its share of the cores, and the data found here, with no second search."""
    from subspace_lib.tasks.datasets import data_folder

    told = {"SUBSPACE_DEVICE": device, "OMP_NUM_THREADS": str(threads), "SUBSPACE_DATA": str(data_folder())}
    return os.environ | told | ({"SUBSPACE_OFFLINE": "1"} if standins else {})


def describe(root: Path, profile: str, device: str) -> dict[str, Any]:
    """What runs where: kept in every executed notebook."""
    import torch

    versions = {"python": sys.version.split()[0]}
    for package in ("torch", "numpy", "matplotlib", "papermill"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "profile": profile,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(root),
        "versions": versions,
    }


def _is_done(executed: Path, name: str, digest: str) -> bool:
    record = None if says("RERUN", "1", "all chapters run again") else record_of(executed, name)
    return record is not None and record.get("digest") == digest
