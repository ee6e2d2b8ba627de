"""What Windows lacks is refused to this library and its tests; other packages know that they are on Linux."""

import builtins
import ctypes
import importlib.abc
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType, ModuleType

os.environ["SUBSPACE_KERNELS"] = "0"  # those in C are for Linux

ABSENT = {
    os: (
        *("killpg", "setsid", "setpgid", "getpgid", "setpgrp", "fork", "forkpty", "wait", "WEXITSTATUS"),
        *("mkfifo", "statvfs", "chown", "fchmod", "getuid", "geteuid", "getgid", "getpgrp"),
        *("uname", "nice", "sysconf", "getloadavg", "sched_getaffinity", "sched_setaffinity"),
    ),
    signal: ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGSTOP", "alarm"),
    time: ("tzset",),
}
MODULES = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "syslog", "readline")
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (str(ROOT / "subspace_lib"), str(ROOT / "tests"))


def is_refused(frame: FrameType | None) -> bool:
    """Whether the code that asks is one to whom things are refused."""
    while frame and any(name in frame.f_code.co_filename for name in ("importlib", "pathlib", "genericpath")):
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


def look(path: object, **options: object) -> os.stat_result:
    """What stands at a path, but for what Linux alone has."""
    if str(path).startswith("/dev/shm") or (str(path).startswith("/proc") and is_refused(sys._getframe(1))):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return looked(path, **options)


def open_as_windows(
    file: object,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: object,
) -> io.IOBase:
    """Open a file; what is written as text gets the line ends of Windows, unless it is told others."""
    if is_refused(sys._getframe(1)):
        if str(file).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        if newline is None and "b" not in mode and not mode.startswith("r"):
            newline = "\r\n"
    return opened(file, mode, buffering, encoding, errors, newline, **options)


looked, os.stat = os.stat, look
opened, builtins.open, io.open = open, open_as_windows, open_as_windows
library = ctypes.CDLL


def without_prctl(name: object, *arguments: object, **options: object) -> ctypes.CDLL:
    """A library of C; not the one of the system, by which the kernel is asked to end children."""
    if name is None and is_refused(sys._getframe(1)):
        raise OSError("only Linux has prctl")
    return library(name, *arguments, **options)


ctypes.CDLL = without_prctl
