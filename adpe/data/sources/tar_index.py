"""Where the members of a large tar lie, kept in the cache folder: finding them means reading a header for each."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adpe.files import atomic_write

Member = tuple[str, int, int]  # name, offset in bytes, size in bytes
WORTH_KEEPING = 1000  # members; fewer are found in some hundredths of a second

logger = logging.getLogger(__name__)


def archive_key(path: Path) -> str:
    """What names an archive in the cache, as long as its path, size and time stay the same."""
    status = path.stat()
    text = os.fsencode(path.resolve()) + f"\0{status.st_size}\0{status.st_mtime_ns}".encode()
    return hashlib.sha256(text).hexdigest()[:32]


class TarIndex:
    """The index of one tar; see :func:`archive_key`.

    Args:
        tar: the archive, uncompressed.
        cache_dir: the index lies in its folder "indices"; where that cannot be written, nothing is kept.
    """

    def __init__(self, tar: Path, cache_dir: Path) -> None:
        self.file = cache_dir / "indices" / f"{archive_key(tar)}.npz"

    def read(self) -> list[Member] | None:
        """The members, or None if they are not kept, or their file is damaged."""
        try:
            if not self.file.exists():
                return None
            with np.load(self.file, allow_pickle=False) as kept:
                names, places, digest = kept["names"], kept["places"], kept["digest"]
            if digest.tobytes() != _digest(names, places):
                raise ValueError("it has changed since it was written")
            decoded = [name.decode("utf-8", "surrogateescape") for name in names.tobytes().split(b"\0")]
            return [(name, offset, size) for name, (offset, size) in zip(decoded, places.tolist(), strict=True)]
        except Exception as error:  # zipfile and numpy raise many kinds; the archive itself is at hand
            logger.warning("%s cannot be read (%s): the archive is indexed anew", self.file, error)
            return None

    def write(self, members: Sequence[Member]) -> None:
        """Keep the members of a large tar; not of one with names that cannot be told apart in the file."""
        if len(members) < WORTH_KEEPING or any("\0" in name for name, _, _ in members):
            return
        text = b"\0".join(name.encode("utf-8", "surrogateescape") for name, _, _ in members)
        names, places = np.frombuffer(text, dtype=np.uint8), np.array([m[1:] for m in members], dtype=np.int64)
        digest = np.frombuffer(_digest(names, places), dtype=np.uint8)
        try:
            with atomic_write(self.file) as temporary, open(temporary, "wb") as file:
                np.savez(file, names=names, places=places, digest=digest)
        except OSError as error:
            logger.warning("the index of the archive is not kept: %s", error)


def _digest(names: np.ndarray, places: np.ndarray) -> bytes:
    return hashlib.sha256(names.tobytes() + str((places.dtype, places.shape)).encode() + places.tobytes()).digest()
