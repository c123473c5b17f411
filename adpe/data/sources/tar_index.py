"""Where the members of a large tar lie, kept in the cache folder: finding them means reading a header for each."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adpe.files import atomic_write

Member = tuple[str, int, int]  # name, offset in bytes, size in bytes
WORTH_KEEPING = 1000  # members; fewer are found in some hundredths of a second
_FORM = "adpe tar index 1"

logger = logging.getLogger(__name__)


class TarIndex:
    """The index of one tar, as long as its path, size and time stay the same.

    Args:
        tar: the archive, uncompressed.
        cache_dir: the index lies in its folder "indices"; where that cannot be written, nothing is kept.
    """

    def __init__(self, tar: Path, cache_dir: Path) -> None:
        status = tar.stat()
        key = f"{_FORM}\0{tar.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        self.file = cache_dir / "indices" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    def read(self) -> list[Member] | None:
        """The members, or None if they are not kept, or the file of them is damaged."""
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                names, places = kept["names"].tobytes().split(b"\0"), kept["places"].tolist()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): the archive is indexed anew", self.file, error)
            return None
        decoded = [name.decode("utf-8", "surrogateescape") for name in names]
        return [(name, offset, size) for name, (offset, size) in zip(decoded, places, strict=True)]

    def write(self, members: Sequence[Member]) -> None:
        """Keep the members of a large tar."""
        if len(members) < WORTH_KEEPING:
            return
        names = b"\0".join(name.encode("utf-8", "surrogateescape") for name, _, _ in members)
        places = np.array([member[1:] for member in members], dtype=np.int64)
        try:
            with atomic_write(self.file) as temporary, open(temporary, "wb") as file:
                np.savez(file, names=np.frombuffer(names, dtype=np.uint8), places=places)
        except OSError as error:
            logger.warning("the index of the archive is not kept: %s", error)
