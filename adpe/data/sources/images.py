"""One indexable source of images out of folders, tar and zip archives, in any combination."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from adpe.data.sources.archives import COMPRESSED, DAMAGE, TarArchive, ZipArchive, check_size, default_cache_dir
from adpe.data.sources.names import EXTENSIONS, is_image, left_out
from adpe.data.sources.pixels import CorruptImageError, decode_image, decode_pixels, unreadable
from adpe.errors import UserError

MAX_CONSECUTIVE_CORRUPT = 100

logger = logging.getLogger(__name__)
Decoded = TypeVar("Decoded")


class ImageSource:
    """Images of one or several folders and archives, addressed by index.

    A source is a folder (searched recursively, links followed), a `.tar`, `.tar.xz`, `.tar.gz` or `.zip` archive, one
    image file, or a list of these, which are concatenated. Within each, images are sorted by their path, so that a
    folder and an archive of it give the same indices. Uncompressed tars and zips are read in place. A compressed tar is
    unpacked once into one `.tar` in the cache directory (atomically, and at most to 100 times its size). Files that are
    left out for their name are counted in a warning. What an image's pixels are is said in `adpe.data.sources.pixels`.

    Instances can be pickled and used after a fork (DataLoader workers); files are opened on first use.

    Args:
        path: the source or list of sources.
        split: if given, only images under this folder inside each source, e.g. ``"train"``.
        on_corrupt: ``"skip"`` replaces an unreadable image with the next readable one and logs a warning with its path
            (once a path and process); ``"error"`` raises `CorruptImageError`.
        cache_dir: where compressed tars are unpacked; default ``$ADPE_CACHE_DIR``, else ``~/.cache/adpe``.

    Attributes:
        classes: sorted names of the folders that hold images.
        labels: (N,) int64, each image's index into `classes`, -1 for images directly under the source or split.

    Raises:
        UserError: for a path that is missing, of an unknown kind, damaged, unsafe or without images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        split: str | None = None,
        on_corrupt: str = "skip",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_corrupt not in ("skip", "error"):
            raise UserError(f"on_corrupt={on_corrupt!r}: expected 'skip' or 'error'.")
        self.on_corrupt = on_corrupt
        self.split = split.strip("/") if split else ""
        self._warned: set[str] = set()
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if not paths or not all(os.fspath(p) for p in paths):
            raise UserError(f"images source {path!r}: expected the path of a folder or archive, or a list of them.")
        cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._parts = [_open_part(Path(p).expanduser(), cache) for p in paths]
        members = [self._list(part) for part in self._parts]
        # Fixed-width arrays: a million Python strings would be copied into every worker as their reference counts move.
        self._starts = np.cumsum([0] + [len(part) for part in members])
        self._names = np.array([_encode(name) for part in members for name, _, _ in part], dtype=np.bytes_)
        self._offsets = np.array([offset for part in members for _, offset, _ in part], dtype=np.int64)
        self._sizes = np.array([size for part in members for _, _, size in part], dtype=np.int64)
        folders = [self._folder(name) for part in members for name, _, _ in part]
        self.classes = sorted(set(folders) - {""})
        position = {name: index for index, name in enumerate(self.classes)} | {"": -1}
        self.labels = np.array([position[folder] for folder in folders], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"ImageSource({[str(part.path) for part in self._parts]}, {len(self)} images)"

    @cached_property
    def paths(self) -> list[str]:
        """Every image's `path(index)`."""
        return [self.path(index) for index in range(len(self))]

    def path(self, index: int) -> str:
        """Path of an image; inside an archive, the archive's path followed by the member's."""
        part, name = self._locate(index)
        return os.path.join(part.path, name) if name else str(part.path)

    def label(self, index: int) -> int:
        """Index into `classes`, or -1."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """The encoded image, whatever `on_corrupt` says. Raises CorruptImageError if it cannot be read."""
        part, name = self._locate(index)
        try:
            return part.read(name, int(self._offsets[index]), int(self._sizes[index]))
        except DAMAGE as error:
            raise unreadable(self.path(index), error) from error

    def decode(self, index: int) -> Image.Image:
        """The image in mode RGB by the policy of `adpe.data.sources.pixels`, whatever `on_corrupt` says.

        Raises CorruptImageError.
        """
        return decode_image(self.read(index), self.path(index))

    def decode_pixels(self, index: int, reduction: Callable[[int, int], int] | None = None) -> tuple[np.ndarray, int]:
        """The image as (H, W, 3) uint8, reduced by the factor that follows: see `pixels.decode_pixels`.

        Raises CorruptImageError, whatever `on_corrupt` says.
        """
        return decode_pixels(self.read(index), self.path(index), reduction)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The image in mode RGB and its index, which is another than asked for where a corrupt one was skipped.

        Raises:
            CorruptImageError: if `on_corrupt="error"` and it is unreadable.
            UserError: if it and the 99 after it are unreadable.
        """
        return self.readable(index, self.decode)

    def readable(self, index: int, decode: Callable[[int], Decoded]) -> tuple[Decoded, int]:
        """What `decode`, a method of this source, returns for an image, and the image's index, as `load` does."""
        for step in range(min(len(self), MAX_CONSECUTIVE_CORRUPT)):
            candidate = (index + step) % len(self)
            try:
                return decode(candidate), candidate
            except CorruptImageError as error:
                if self.on_corrupt == "error":
                    raise
                path = self.path(candidate)
                if path not in self._warned:
                    self._warned.add(path)
                    logger.warning("skipped: %s", error)
        raise UserError(f"{self!r}: {step + 1} images from {self.path(index)} on cannot be read, one after the other.")

    def open(self, index: int) -> Image.Image:
        """`load` without the index."""
        return self.load(index)[0]

    def _locate(self, index: int) -> tuple[_Part, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        part = self._parts[int(np.searchsorted(self._starts, index, side="right")) - 1]
        return part, bytes(self._names[index]).decode("utf-8", "surrogateescape")

    def _list(self, part: _Part) -> list[tuple[str, int, int]]:
        members = list(part.members())
        found = sorted(member for member in members if not member[0] or is_image(member[0]))
        others = left_out(name for name, _, _ in members if name and not is_image(name))
        if not found:
            raise UserError(
                f"no images in {part.path}: expected files ending in {', '.join(EXTENSIONS)}; "
                f"{others or 'it is empty'}."
            )
        if others:
            logger.warning("%s: %d images; %s", part.path, len(found), others)
        if not self.split:
            return found
        chosen = [member for member in found if member[0].startswith(self.split + "/")]
        if not chosen:
            folders = sorted({name.split("/")[0] for name, _, _ in found if "/" in name})
            raise UserError(
                f"no images under {self.split!r} in {part.path}: expected a split among "
                f"{', '.join(folders[:20]) or 'none, it has no folders'}."
            )
        return chosen

    def _folder(self, name: str) -> str:
        relative = name[len(self.split) + 1 :] if self.split else name
        return relative.rpartition("/")[0].rpartition("/")[2]


class _Folder:
    """A folder, or with `name == ""` a single image file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> Iterator[tuple[str, int, int]]:
        """`(path relative to the folder, 0, 0)` of every file. Raises UserError if a folder cannot be listed."""
        if self.path.is_file():
            yield "", 0, 0
            return
        pending, seen = [""], set()
        while pending:
            folder = pending.pop()
            real = os.path.realpath(self.path / folder)
            if real in seen:  # a link back up
                continue
            seen.add(real)
            try:
                with os.scandir(real) as entries:
                    for entry in entries:
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        if entry.is_dir():
                            pending.append(name)
                        elif entry.is_file() or entry.is_symlink():  # a dangling link is to be reported, not ignored
                            yield name, 0, 0
            except OSError as error:
                raise UserError(f"cannot list {self.path / folder}: {error.strerror}.") from error

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The bytes of one file. Raises OSError, or ValueError if it is too large."""
        with open(os.path.join(self.path, name) if name else self.path, "rb", buffering=0) as file:
            check_size(os.fstat(file.fileno()).st_size)
            return file.readall()


_Part = _Folder | TarArchive | ZipArchive


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _open_part(path: Path, cache_dir: Path) -> _Part:
    expected = f"a folder of images, an archive (.tar, {', '.join(COMPRESSED)}, .zip) or an image"
    if not path.exists():
        raise UserError(f"{path} does not exist: expected {expected}.")
    name = path.name.lower()
    if path.is_dir() or name.endswith(EXTENSIONS):
        return _Folder(path)
    if name.endswith((".tar", *COMPRESSED)):
        return TarArchive(path, cache_dir)
    if name.endswith(".zip"):
        return ZipArchive(path)
    raise UserError(f"{path} has an unknown extension: expected {expected}.")
