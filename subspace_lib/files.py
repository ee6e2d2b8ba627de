"""Files that are either whole or not there."""

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

    A link is followed. The file has the mode of the one that it replaces, or of the user's umask.

    Raises
    ------
    OSError
        If the folder cannot be made or written, or something else than a file stands at ``path``; whatever stood there
        is still there.
    """
    path = Path(os.path.realpath(path))
    mode = 0o666
    if path.is_symlink():  # still, so it leads nowhere
        raise OSError(errno.ELOOP, "links that lead in a circle; give another path", str(path))
    if path.exists():
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file, and therefore not replaced; give another path", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}{path.suffix[:50]}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IMODE(mode))
    try:
        if not path.exists():
            mode = os.fstat(handle).st_mode
        os.close(handle)
        yield temporary
        with contextlib.suppress(OSError):  # some file systems know no modes
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
