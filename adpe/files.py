"""Writing files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# Whether this is a wheel's copy; setup.py puts configs, suites and tools below the package then.
INSTALLED = not (_PACKAGE.parent / "configs").is_dir()
ROOT = _PACKAGE / "checkout" if INSTALLED else _PACKAGE.parent


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    Raises:
        OSError: as the file system does (no space, read-only); `path` is untouched then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp is private; a checkpoint is as readable as any other file
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process of a machine makes what belongs in a cache, the others wait for what it made.

    Args:
        path: of the file that is locked. Where its folder cannot be written to, nobody waits.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
        yield
