"""What Windows lacks is refused to this library and its tests; other packages know that they are on Linux."""

import importlib.abc
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType, ModuleType

ABSENT = {
    os: ("killpg", "setsid", "setpgid", "getpgid", "setpgrp", "fork", "forkpty", "mkfifo", "statvfs", "getuid"),
    signal: ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1"),
}
MODULES = ("fcntl", "resource", "termios", "pwd", "grp")
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (str(ROOT / "subspace_lib"), str(ROOT / "tests"))


def is_refused(frame: FrameType | None) -> bool:
    """Whether the code that asks is one to whom things are refused."""
    while frame and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and any(folder in frame.f_code.co_filename for folder in FOLDERS)


class Refused(importlib.abc.MetaPathFinder):
    """Finds none of the modules that Windows lacks."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse it, or leave it to the next finder."""
        if name in MODULES and is_refused(sys._getframe(1)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide(module: ModuleType, names: tuple[str, ...]) -> None:
    """Let a module have these names for others only."""
    hidden = {name: module.__dict__.pop(name) for name in names}

    def find(name: str) -> object:
        if name not in hidden or is_refused(sys._getframe(1)):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=module)
        return hidden[name]

    module.__getattr__ = find


def start(self: subprocess.Popen, *arguments: object, **options: object) -> None:
    """Start a process as Windows can."""
    for name in ("start_new_session", "process_group", "preexec_fn"):
        if options.get(name) is not None and is_refused(sys._getframe(1)):
            raise ValueError(f"{name} is not supported on Windows platforms")
    started(self, *arguments, **options)


for module, names in ABSENT.items():
    hide(module, names)
for name in MODULES:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Refused())
started, subprocess.Popen.__init__ = subprocess.Popen.__init__, start
exists = os.path.exists
os.path.exists = lambda path: not str(path).startswith("/dev/shm") and exists(path)
