"""Reading tar and zip archives of images at random positions, without ever unpacking a member onto the disk.

What comes out of an archive is only ever bytes in memory and a name to report. Links and special files are left out,
names that are absolute or climb out with `..` are refused, and sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from adpe.data.sources.tar_index import Member, TarIndex, archive_key
from adpe.errors import UserError

MAX_IMAGE_BYTES = 256 * 2**20  # one encoded image
MAX_UNPACK_RATIO = 100  # a compressed tar may grow by this factor ...
MIN_UNPACK_BYTES = 64 * 2**20  # ... or to this size, whichever is more
COMPRESSED: dict[str, Any] = {".tar.xz": lzma.open, ".txz": lzma.open, ".tar.gz": gzip.open, ".tgz": gzip.open}

# Everything that the libraries raise on a damaged file.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, RuntimeError, IndexError, KeyError, TypeError, OverflowError, SyntaxError),
    *(struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


class _SharedFile(io.RawIOBase):
    """A read-only file that may be used after a fork and pickled.

    It keeps its position itself and reads with `pread`: a forked process shares the descriptor's position with its
    parent, where two readers that seek would take each other's data.
    """

    _descriptor: int | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.position = 0

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes at `offset`. Raises OSError."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._descriptor, size, offset)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: os.stat(self.path).st_size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path)
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self.pread(len(buffer), self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        super().close()

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.__init__(path)  # type: ignore[misc]


class TarArchive:
    """A `.tar`, or a `.tar.xz` / `.tar.gz` unpacked as a whole into one cached `.tar`.

    Tars inside the tar (ImageNet's `ILSVRC2012_img_train.tar` has one a class) are read in place, their members named
    `<inner tar without .tar>/<member>`.

    Args:
        path: the archive.
        cache_dir: folder for the unpacked tar of a compressed one, and for the index; see `default_cache_dir`.

    Raises:
        UserError: if the archive is damaged, grows beyond the limit, holds unsafe names, or the cache is not writable.
    """

    def __init__(self, path: Path, cache_dir: Path) -> None:
        self.path = path
        suffix = next((suffix for suffix in COMPRESSED if path.name.lower().endswith(suffix)), None)
        self.file = _SharedFile(path if suffix is None else _unpack(path, suffix, cache_dir))
        self.index = TarIndex(Path(self.file.path), cache_dir)

    def members(self) -> list[Member]:
        """`(name, offset in bytes, size in bytes)` of every regular file."""
        found = self.index.read()
        if found is None:
            try:
                found = list(self._members(0, "", nested=True))
            except DAMAGE as error:
                if isinstance(error, UserError):
                    raise
                raise _damaged(self.path, error) from error
            self.index.write(found)
        return found

    def _members(self, start: int, prefix: str, nested: bool) -> Iterator[Member]:
        stream = io.BufferedReader(_SharedFile(self.file.path), 2**16)
        stream.seek(start)
        with stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all: a gigabyte a million
                if not (member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None):
                    continue
                name = prefix + safe_name(member.name, self.path)
                if nested and name.lower().endswith(".tar"):
                    yield from self._members(member.offset_data, name[:-4] + "/", nested=False)
                else:
                    yield name, member.offset_data, member.size
            # tarfile takes a damaged header for the end of the archive: only zeros or nothing may follow the last one.
            if self.file.pread(tarfile.BLOCKSIZE, archive.offset).strip(b"\0"):
                raise tarfile.ReadError(f"damaged header at byte {archive.offset}")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The bytes of one member. Raises OSError or ValueError where it is damaged."""
        check_size(size)
        data = self.file.pread(size, offset)
        if len(data) < size:
            raise EOFError(f"{len(data)} of {size} bytes")
        return data


class ZipArchive:
    """A `.zip` whose members are stored or deflated.

    Raises:
        UserError: if the archive is damaged or holds unsafe names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(_SharedFile(self.path))  # type: ignore[arg-type]
        return self._archive

    def members(self) -> Iterator[tuple[str, int, int]]:
        """`(name, position in the directory, size in bytes)` of every regular file."""
        try:
            entries = self._open().infolist()
        except DAMAGE as error:
            raise _damaged(self.path, error) from error
        for position, entry in enumerate(entries):
            kind = stat.S_IFMT(entry.external_attr >> 16)
            # entry.is_dir() fails for an empty name
            if not entry.filename.endswith("/") and kind in (0, stat.S_IFREG):
                yield safe_name(entry.filename, self.path), position, entry.file_size

    def read(self, name: str, position: int, size: int) -> bytes:
        """The bytes of one member, its checksum verified. Raises what `zipfile` raises where it is damaged."""
        check_size(size)
        entry = self._open().infolist()[position]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"zip compression method {entry.compress_type}, expected stored or deflated")
        return self._open().read(entry)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]


def default_cache_dir() -> Path:
    """`$ADPE_CACHE_DIR`, or `adpe` under `$XDG_CACHE_HOME`, or `~/.cache/adpe`."""
    if "ADPE_CACHE_DIR" in os.environ:
        return Path(os.environ["ADPE_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adpe"


def _unpack(path: Path, suffix: str, cache_dir: Path) -> Path:
    """The `.tar` inside a compressed one, written once. A reader sees a whole file under its final name or none."""
    key = archive_key(path)
    target = cache_dir / f"{key}.tar"
    if target.exists():
        return target
    limit = max(MIN_UNPACK_BYTES, MAX_UNPACK_RATIO * path.stat().st_size)
    partial: Path | None = None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache_dir)
        descriptor, name = tempfile.mkstemp(suffix=".partial", prefix=key, dir=cache_dir)
        partial = Path(name)
        written = 0
        with os.fdopen(descriptor, "wb") as out, COMPRESSED[suffix](path, "rb") as stream:
            while chunk := stream.read(2**20):
                written += len(chunk)
                if written > limit:
                    raise UserError(
                        f"{path} unpacks to more than {limit} bytes ({MAX_UNPACK_RATIO} times its size): refused as a "
                        "decompression bomb. Unpack it yourself and give the folder if you trust it."
                    )
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, target)
        partial = None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is None:  # raised by the decompressor, not by the system
            raise _damaged(path, error) from error
        raise UserError(
            f"cannot unpack {path} into the cache {cache_dir}: {error}. Free some space, or point the environment "
            "variable ADPE_CACHE_DIR at a writable folder."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target


def _remove_abandoned(cache_dir: Path) -> None:
    """Delete what processes killed while unpacking left behind a day or more ago."""
    for path in cache_dir.glob("*.partial"):
        try:
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink()
        except FileNotFoundError:
            continue


def safe_name(name: str, archive: Path) -> str:
    """The name of an archive's member as a relative path; UserError if it points outside the archive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0].startswith("/") or ".." in parts:  # two slashes are a root of their own
        raise UserError(f"{archive}: refused, because its member {name!r} points outside the archive.")
    return "/".join(parts)


def check_size(size: int) -> None:
    """Raise ValueError if an encoded image of `size` bytes is beyond the limit."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"{size} bytes, more than the limit of {MAX_IMAGE_BYTES} for one image")


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} cannot be read as an archive: {error}. Download or copy it again.")
