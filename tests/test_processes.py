"""Children end with whoever started them, by the system's help or without it; nothing here needs PyTorch."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from subspace_lib import processes

CHILD = """
import os, pathlib, sys, time
def main():
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(60)
"""
TIED = """
import os, sys
from subspace_lib import processes as p
p.start(p.tied("child:main", sys.argv[1]), os.environ).wait()
"""
WATCHED = """
import subprocess, sys
child = "import child, os; from subspace_lib import processes as p; p._killed_by_linux = lambda: False; "
subprocess.run([sys.executable, "-c", child + "p.die_with_parent(); child.main()", sys.argv[1]])
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the child writes its number; its module can be imported by every child."""
    (tmp_path / "child.py").write_text(CHILD)
    library = Path(processes.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(library), str(tmp_path)]))
    return tmp_path / "marker"


def wait_for(marker: Path) -> int:
    """The child's number, once it runs."""
    end = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()):
        assert time.monotonic() < end, "the child never ran"
        time.sleep(0.05)
    return int(marker.read_text())


def is_gone(pid: int) -> bool:
    """Whether a process ended, within ten seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z":  # dead, and not yet collected
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="asks whether a process lives as POSIX does")
@pytest.mark.parametrize("program", [TIED, WATCHED], ids=["by the kernel", "by a thread"])
def test_a_child_ends_when_its_parent_is_killed(program: str, marker: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", program, str(marker)])
    child = wait_for(marker)
    parent.kill()
    parent.wait()
    assert is_gone(child)


def test_it_ends_at_once_if_its_parent_is_another_by_now(marker: Path) -> None:
    child = subprocess.Popen(processes.tied("child:main", str(marker)), env={**os.environ, processes.PARENT: "1"})
    assert child.wait(30) == 1
    assert not marker.exists()


def test_children_are_ended_where_there_are_no_groups(marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "killpg" in vars(os):
        monkeypatch.delattr(os, "killpg")
    child = processes.start(processes.tied("child:main", str(marker)), os.environ)
    wait_for(marker)
    processes.end([child])
    assert child.returncode not in (0, None)
    processes.end([child])


def test_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.commit(tmp_path) == "unknown"
    folder = tmp_path / "packages" / "library"
    folder.mkdir(parents=True)
    (folder / "module.py").touch()
    (tmp_path / ".gitignore").write_text("packages\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.org"]
    for words in (["init", "-q"], ["add", ".gitignore"], ["commit", "-qm", "another project"]):
        subprocess.run([*git, *words], check=True)
    assert processes.commit(tmp_path) != "unknown"
    for everything in (True, False):
        assert processes.commit(folder, everything) == "unknown", "installed within another project, it is not that one"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.commit(Path(__file__).parent) == "unknown"
