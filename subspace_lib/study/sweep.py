"""Many runs: each one specification, one record, and no run twice."""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from subspace_lib.data import Data
from subspace_lib.files import write_text
from subspace_lib.processes import Unfinished, commit, die_with_parent
from subspace_lib.study.records import Record, Spec, read_records, write_record, write_table
from subspace_lib.study.runs import run
from subspace_lib.study.starts import load_task
from subspace_lib.tasks.profiles import check_device

LARGEST_GROUP = 32
DASK_TIMEOUT = "10s"


class SweepError(Unfinished):
    """Some runs failed; the message lists them. All others are recorded."""


def sweep(
    specs: Sequence[Spec],
    records: Path,
    table: Path,
    *,
    device: str = "cpu",
    jobs: int = 1,
    dask: str | None = None,
    require_real: bool = True,
) -> dict[str, Record]:
    """Make the runs that have no record yet, and gather all of an experiment in its table.

    A run is recorded as soon as it ends, so a sweep can be killed at any time, and the next one goes on from there.
    Several sweeps may share one folder: a run belongs to the first that locks it, and the others wait for it at the
    end. Damaged records are put aside and made again.

    Parameters
    ----------
    specs : sequence of Spec
        The runs, made in this order.
    records : Path
        Folder of the working records, ``<key>.json`` each; failures as ``<key>.failed``.
    table : Path
        The gathered records, ``<experiment>.jsonl``, and the table ``.csv`` beside them; what ``gather`` moves out of
        it is in a folder ``replaced`` beside.
    device : str
        "cpu": processes of one thread each; "cuda": groups of runs in ``fit_many``.
    jobs : int
        Processes at a time, on this machine.
    dask : str, optional
        Address of a Dask scheduler, whose workers then make the runs in place of processes of this machine. They have
        to see the same folders, and should have one thread each. A run whose worker dies is made again by another.
    require_real : bool
        Whether a missing data set is an error; else its offline stand-in is used, and named in the record.

    Returns
    -------
    dict of str to dict
        All records of folder and table, by the key of their specification.

    Raises
    ------
    SweepError
        If runs failed, or have no record; after all others were made.
    RecordVersionError
        If there are records of another version.
    ValueError
        If the device or the number of jobs is not possible, or the package for Dask is not installed.
    OSError
        If no Dask scheduler answers.
    """
    check_device(device)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if dask == "":
        raise ValueError("the address of the Dask scheduler is empty; give one as tcp://host:8786")
    if dask and not find_spec("distributed"):
        raise ValueError(f"dask = {dask!r} needs the package distributed; install it with `pip install distributed`")
    records.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    work = functools.partial(
        _attempt, folder=records.resolve(), device=device, require_real=require_real, commit=code_commit()
    )
    try:
        known = gather(records, table, specs)
        missing = [spec for spec in specs if spec.key not in known]
        groups = _groups(missing, device)
        outcomes = _on_cluster(work, groups, dask) if dask else _in_processes(work, groups, jobs)
        with tqdm(total=len(specs), initial=len(specs) - len(missing), desc=table.stem, unit="run") as bar:
            for outcome in outcomes:
                failures |= outcome
                bar.update(len(outcome))
        for spec in missing:  # those that another sweep had locked
            if not failures.get(spec.key) and not (records / f"{spec.key}.json").exists():
                failures |= work([spec], wait=True)
    finally:
        known = gather(records, table, specs)
    absent = {spec.key: "it has no record" for spec in specs if spec.key not in known}
    failures = absent | {key: text for key, text in failures.items() if text}
    if failures:
        lines = "\n".join(f"  {key}: {text}" for key, text in sorted(failures.items()))
        raise SweepError(f"{len(failures)} of {len(specs)} runs failed (see {records}/*.failed):\n{lines}")
    return known


def gather(records: Path, table: Path, specs: Sequence[Spec]) -> dict[str, Record]:
    """Bring working records and table together; say which are damaged, and put these aside.

    Where an experiment now asks for other rates or lengths of a run than those recorded, its table keeps the old runs
    until the new ones of that point (all but rate, length and seed) are whole, so that no table mixes them. Then the
    old ones move to the table of the same name in the folder ``replaced``.

    Returns
    -------
    dict of str to dict
        All records there are, by the key of their specification.
    """
    replaced = table.parent / "replaced" / table.name
    with FileLock(records / "table.lock"):
        known, damaged = read_records(records, replaced, table)
        for message in damaged:
            tqdm.write(f"{message}; it is set aside as *.damaged, and the run is made again")
        current, old = divide(known, specs, set(read_records(None, table)[0]))
        if old or replaced.is_file():  # first, so that a kill in between loses none
            write_table(replaced, old)
        if known:
            write_table(table, current)
    return known


def divide(known: dict[str, Record], specs: Sequence[Spec], present: Set[str]) -> tuple[list[Record], list[Record]]:
    """The records of an experiment's table, and those that are replaced by others; ``present``: now in the table."""
    wanted: dict[str, list[Spec]] = defaultdict(list)
    for spec in specs:
        wanted[_point(spec)].append(spec)
    asked = {spec.key for spec in specs}

    def whole(runs: Sequence[Spec]) -> bool:
        return all(spec.key in known for spec in runs)

    specification = {key: Spec(**record["spec"]) for key, record in known.items()}
    old = {key for key in known if key not in asked}
    replaced = {key for key in old if whole(wanted.get(_point(specification[key])) or specs)}
    pending = {_point(specification[key]) for key in old - replaced}
    early = {key for key in asked - present if key in known and _point(specification[key]) in pending}
    current = [record for key, record in known.items() if key not in replaced | early]
    return current, [known[key] for key in known if key in replaced]


def _point(spec: Spec) -> str:
    return replace(spec, seed=0, lr=1.0, epochs=0, patience=None).key


def _attempt(
    group: Sequence[Spec], *, folder: Path, device: str, require_real: bool, commit: str, wait: bool = False
) -> dict[str, str]:
    """Make the runs of a group that nobody else makes; give what went wrong with each, "" if nothing did.

    With ``wait``, whoever makes one of them now is waited for, and it is made here if that fails.
    """
    outcome = dict.fromkeys((spec.key for spec in group), "")
    with ExitStack() as locks:
        if device == "cpu":
            locks.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        mine = [spec for spec in group if _claim(spec, folder, locks, wait)]
        if not mine:
            return outcome
        try:
            results = run(mine, _dataset(mine[0].dataset, device, require_real))
            for spec, result in zip(mine, results, strict=True):
                written = {"commit": commit, "date": datetime.now(UTC).isoformat(timespec="seconds")}
                record = {"spec": asdict(spec), "result": result | written}
                write_record(folder / f"{spec.key}.json", record)
                (folder / f"{spec.key}.failed").unlink(missing_ok=True)
        except Exception as error:
            for spec in mine:
                if not (folder / f"{spec.key}.json").exists():
                    outcome[spec.key] = f"{type(error).__name__}: {error}".splitlines()[0]
                    _note_failure(folder / f"{spec.key}.failed", spec)
    return outcome


def _tied(work: Callable[[Sequence[Spec]], dict[str, str]], group: Sequence[Spec], *, parent: int) -> dict[str, str]:
    """Do the work; a process of its own for it ends when ``parent`` does."""
    if os.getpid() != parent:
        die_with_parent(parent)
    return work(group)


def _note_failure(path: Path, spec: Spec) -> None:
    try:
        write_text(path, f"{spec}\n\n{traceback.format_exc()}")
    except OSError as error:
        tqdm.write(f"the failure of {spec.key} could not be written down: {error}")


def _claim(spec: Spec, folder: Path, locks: ExitStack, wait: bool) -> bool:
    """Lock a run, unless somebody else has; whether it is still to be made."""
    try:
        locks.enter_context(FileLock(folder / f"{spec.key}.lock").acquire(timeout=-1 if wait else 0))
    except Timeout:
        return False
    return not (folder / f"{spec.key}.json").exists()


@functools.lru_cache(maxsize=2)
def _dataset(name: str, device: str, require_real: bool) -> Data:
    return load_task(name, device, require_real)


def _groups(specs: Sequence[Spec], device: str) -> list[list[Spec]]:
    """Runs that are made together: one at a time on a CPU; on a GPU subspaces of one network, seed and schedule."""
    if device == "cpu":
        return [[spec] for spec in specs]
    groups: dict[str, list[Spec]] = defaultdict(list)
    for spec in specs:
        alike = replace(spec, projection="", options={}, d=None, lr=1.0)
        groups[spec.key if spec.projection == "none" else alike.key].append(spec)
    return [
        group[start : start + LARGEST_GROUP]
        for group in groups.values()
        for start in range(0, len(group), LARGEST_GROUP)
    ]


def _on_cluster(
    work: Callable[[Sequence[Spec]], dict[str, str]], groups: Sequence[list[Spec]], address: str
) -> Iterator[dict[str, str]]:
    """Outcomes as they come from the workers of a Dask cluster, which makes a run again if its worker dies."""
    from distributed import Client, KilledWorker, as_completed

    with Client(address, timeout=DASK_TIMEOUT) as client:  # type: ignore[no-untyped-call]
        group_of = {client.submit(work, group, pure=False): group for group in groups}
        for future in as_completed(group_of):  # type: ignore[no-untyped-call]
            try:
                yield future.result()
            except KilledWorker:
                yield {spec.key: "each worker that tried it died" for spec in group_of[future]}
            except CancelledError:
                yield {spec.key: "the Dask scheduler was lost" for spec in group_of[future]}


def _in_processes(
    work: Callable[[Sequence[Spec]], dict[str, str]], groups: Sequence[list[Spec]], jobs: int
) -> Iterator[dict[str, str]]:
    """Outcomes as they come; a process that dies takes its own run with it, and the others are made all the same."""
    work = functools.partial(_tied, work, parent=os.getpid())
    todo = list(groups)
    while todo:
        before = len(todo)
        try:
            parallel = Parallel(n_jobs=min(jobs, len(todo)), return_as="generator_unordered")
            for outcome in parallel(delayed(work)(group) for group in todo):
                todo = [group for group in todo if group[0].key not in outcome]
                yield outcome
            return
        except TerminatedWorkerError:
            if len(todo) == before:
                yield {spec.key: "its process died" for group in todo for spec in group}
                return
            tqdm.write("a process died (killed, or out of memory); going on with the runs that are left")
            time.sleep(1)


def code_commit() -> str:
    """The commit of the library's code, with "-dirty" where the code differs from it; or "unknown"."""
    return commit(Path(__file__).resolve().parents[1], everything=False)
