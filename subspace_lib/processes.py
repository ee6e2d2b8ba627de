"""Programs beside this one: children that end when their parent does, and what git says. All that differs between
systems (process groups, signals of the parent's death) stands here.

Run as a script it is the first thing in such a child: ``python processes.py MODULE ARGUMENTS`` is ``python -m MODULE
ARGUMENTS`` tied to its parent, and ``MODULE:FUNCTION`` calls a function without arguments, as an entry point is called.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class Unfinished(Exception):
    """Part of what was asked for failed, and the rest is done; the message says which part and why."""


PARENT = "SUBSPACE_PARENT"
PR_SET_PDEATHSIG = 1
SYNCHRONIZE, INFINITE, CREATE_NEW_PROCESS_GROUP = 0x00100000, 0xFFFFFFFF, 0x200
UNTIL_GONE = 10.0  # seconds


def tied(program: str, *arguments: str) -> list[str]:
    """The command that runs ``MODULE`` or ``MODULE:FUNCTION`` in a child that ends with whoever starts it."""
    return [sys.executable, "-P", str(Path(__file__).resolve()), program, *arguments]


def start(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of ``tied`` in a process group of its own, which a Ctrl-C in the terminal does not reach.

    Parameters
    ----------
    command : sequence of str
        From ``tied``.
    environment : mapping
        The child's environment, in full; it finds this library whatever its folder is.
    output : file, optional
        Where it prints; by default where we do.
    """
    library = str(Path(__file__).resolve().parents[1])
    paths = (library, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
    path = os.pathsep.join(map(os.path.abspath, paths))  # the child's own children run in other folders
    told = {**environment, PARENT: str(os.getpid()), "PYTHONPATH": path}
    return subprocess.Popen(
        command, env=told, stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT, **_own_group()
    )


def _own_group() -> dict[str, Any]:
    """What ``Popen`` is told, so that a Ctrl-C in the terminal does not reach the child."""
    if sys.platform == "win32":
        return {"creationflags": CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0} if hasattr(os, "killpg") else {}


def end(children: Iterable[subprocess.Popen[bytes]]) -> None:
    """End children of ``start`` and their groups at once, and wait until they are gone."""
    children = [child for child in children if child.poll() is None]
    for child in children:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
            continue
        if sys.platform == "win32":  # with what it started: a kernel that holds its interpreter does not watch
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(child.pid)], capture_output=True, check=False)
        child.kill()
    for child in children:
        child.wait(timeout=UNTIL_GONE)


def die_with_parent(parent: int | None = None) -> None:
    """From now on this process ends when its parent does, however that ends.

    On Linux the kernel sees to it, also while C code holds the interpreter; elsewhere a thread watches.

    Parameters
    ----------
    parent : int, optional
        Who that is; this process ends at once if it has another parent by now.
    """
    expected = os.getppid() if parent is None else parent
    if not _killed_by_linux():
        threading.Thread(target=_end_after, args=(expected,), daemon=True).start()
    elif os.getppid() != expected:
        os._exit(1)


CLEARER = """
import shutil, sys, time
sys.stdin.read()
for _ in range(20):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.1)
"""


@contextmanager
def cleared(folder: Path) -> Iterator[None]:
    """The folder is gone afterwards, also if this process is killed: another one waits for its end."""
    pipe = subprocess.PIPE
    waiting = subprocess.Popen([sys.executable, "-I", "-S", "-c", CLEARER, str(folder)], stdin=pipe, **_own_group())
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        waiting.kill()
        waiting.communicate()


def commit(folder: Path, everything: bool = True, whole: bool = False) -> str:
    """The commit of the checkout that a folder belongs to, or "unknown".

    It ends in "-dirty" where a file that git follows has changed; with ``everything`` False only where a file below the
    folder has, or is new there. Its name is short unless it has to be ``whole``.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()

    where = ("--untracked-files=no", "--", ":/") if everything else ("--", ".")
    try:
        if not git("ls-files", "--", "."):  # unpacked or installed somewhere in another project
            return "unknown"
        changed = git("status", "--porcelain", *where)
        return git("describe", "--always", "--exclude=*", *(["--abbrev=40"] if whole else [])) + (
            "-dirty" if changed else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _killed_by_linux() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0)
    except (OSError, AttributeError):
        return False


def _end_after(parent: int) -> None:
    if sys.platform == "win32":
        handle = ctypes.windll.kernel32.OpenProcess(SYNCHRONIZE, False, parent)
        ctypes.windll.kernel32.WaitForSingleObject(handle, INFINITE)
    else:
        while os.getppid() == parent:
            time.sleep(0.5)
    os._exit(1)


def _told() -> int | None:
    """The parent that ``start`` names, or Jupyter to its kernels; on Windows that is no number of a process."""
    jupyter = os.environ.get("JPY_PARENT_PID") if sys.platform != "win32" else None
    told = os.environ.pop(PARENT, None) or jupyter
    return int(told) if told else None


if __name__ == "__main__":
    die_with_parent(_told())
    del sys.argv[0]
    module, _, function = sys.argv[0].partition(":")
    if function:
        sys.exit(getattr(importlib.import_module(module), function)())
    runpy.run_module(module, run_name="__main__", alter_sys=True)
