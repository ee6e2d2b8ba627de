"""Files that are either whole or not there; text in UTF-8, with the same bytes on every system."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; what is written there becomes ``path`` at the end, or never.

    A link is followed. The file has the mode of the one that it replaces, and its owner where we may give it away; or
    the mode of the user's umask.

    Raises
    ------
    OSError
        If the folder cannot be made or written, or a read-only file or something else than a file stands at ``path``;
        whatever stood there is still there.
    """
    path = Path(os.path.realpath(path))
    if path.is_symlink():  # still, so it leads nowhere
        raise OSError(errno.ELOOP, "links that lead in a circle; give another path", str(path))
    old = path.stat() if path.exists() else None
    if old and not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "not a regular file, and therefore not replaced; give another path", str(path))
    if old and not old.st_mode & stat.S_IWUSR:
        raise PermissionError(errno.EACCES, "read-only, and therefore not replaced; give another path", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:30]}.{secrets.token_hex(4)}{path.suffix[:20]}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IMODE(old.st_mode) if old else 0o666)
    try:
        mode = (old or os.fstat(handle)).st_mode
        os.close(handle)
        yield temporary
        if old and hasattr(os, "chown"):
            with contextlib.suppress(OSError):  # we may not give it away
                os.chown(temporary, old.st_uid, old.st_gid)
        with contextlib.suppress(OSError):  # some file systems know no modes
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises
    ------
    ValueError
        If it is in another encoding; the message names the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}); save it in that encoding") from None


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, with line feeds alone at the ends of lines; the file is whole, or as it was.

    Raises
    ------
    OSError
        As ``replaced_atomically``.
    """
    with replaced_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
