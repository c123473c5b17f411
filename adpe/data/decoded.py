"""Images decoded once into a memory-mapped file, for data sets that fit: CIFAR-10, scenes, small photographs.

The pixels are those that the images decode to, so crops of them are the same. A file belongs to the encoded images, by
their names, sizes, times and the contents of a sample, and to the decoders' versions; where the images lie is no part
of it. Files are read by all processes of a machine, which share their memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adpe.data.archives import default_cache_dir
from adpe.data.images import ImageSource
from adpe.data.pixels import CorruptImageError
from adpe.errors import UserError
from adpe.files import atomic_write, lock

_FORM = b"adpe decoded 1"  # of the files, and of the policy in adpe.data.pixels
_SAMPLE = 64  # images whose contents are part of a file's name
_DECODERS = ("pillow", "torchvision")

logger = logging.getLogger(__name__)


class DecodedSource(ImageSource):
    """An `ImageSource` that decodes its images when it is made, unless they have been decoded before.

    Two files hold them: ``<key>.pixels``, all images one after the other, (H, W, 3) uint8 each, and
    ``<key>.sizes.npy``, (N, 2) int32, their heights and widths, 0 where an image cannot be read. The second is written
    last, both atomically and by one process of a machine while the others wait.

    Args:
        path: as of `ImageSource`, and so are `split` and `on_corrupt`.
        cache_dir: of the files; default ``$ADPE_CACHE_DIR``, else ``~/.cache/adpe``. They lie in its folder "decoded".

    Attributes:
        file: the file of pixels.

    Raises:
        UserError: what `ImageSource` raises, and if the cache cannot be written, or is truncated.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        split: str | None = None,
        on_corrupt: str = "skip",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(path, split, on_corrupt, cache_dir)
        folder = (Path(cache_dir) if cache_dir is not None else default_cache_dir()) / "decoded"
        key = self._key()
        self.file, sizes = folder / f"{key}.pixels", folder / f"{key}.sizes.npy"
        if not sizes.exists():
            with lock(folder / f"{key}.lock"):
                if not sizes.exists():
                    self._write(sizes)
        self._shapes = _read_sizes(sizes, len(self))
        self._bytes = np.concatenate([[0], np.cumsum(self._shapes.prod(axis=1, dtype=np.int64) * 3)])
        found = self.file.stat().st_size if self.file.exists() else 0
        if found != self._bytes[-1]:
            raise UserError(
                f"{self.file} has {found} bytes, expected {self._bytes[-1]}: it is truncated. Delete it and {sizes}: "
                "the images are decoded anew."
            )
        self._pixels: np.ndarray | None = None

    def decode(self, index: int) -> Image.Image:
        """As `ImageSource`'s."""
        return Image.fromarray(self.decode_pixels(index)[0])

    def decode_pixels(self, index: int, reduction: Callable[[int, int], int] | None = None) -> tuple[np.ndarray, int]:
        """As `ImageSource`'s, of the whole image, read-only."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        height, width = self._shapes[index].tolist()
        if height == 0:
            return super().decode_pixels(index, reduction)  # which says why it cannot be read
        if reduction is not None:
            reduction(height, width)
        if self._pixels is None:  # in each process
            # As a plain array: slices of a memmap are slow to make.
            self._pixels = np.asarray(np.memmap(self.file, np.uint8, "r"))
        return self._pixels[self._bytes[index] : self._bytes[index + 1]].reshape(height, width, 3), 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def _key(self) -> str:
        key = hashlib.sha256(_FORM)
        for package in _DECODERS:
            key.update(f"{package} {version(package)}\0".encode())
        for names in (self._names, self._offsets, self._sizes):
            key.update(str((names.dtype, names.shape)).encode() + names.tobytes())
        for part in self._parts:
            if part.path.is_file():
                key.update(_stamp(part.path))
        for index in range(len(self)):
            part, name = self._locate(index)
            if part.path.is_dir():
                key.update(_stamp(part.path / name))
        for index in np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(int)).tolist():
            try:
                key.update(self.read(index))
            except CorruptImageError:
                continue
        return key.hexdigest()[:32]

    def _write(self, sizes: Path) -> None:
        """Decode all images; raises UserError where the cache cannot be written."""
        logger.info("decoding %d images into %s, once", len(self), self.file)
        shapes = np.zeros((len(self), 2), dtype=np.int32)
        try:
            with atomic_write(self.file) as temporary, open(temporary, "wb") as file:
                for index in range(len(self)):
                    try:
                        pixels, _ = super().decode_pixels(index)
                    except CorruptImageError:
                        continue  # told where it is asked for
                    shapes[index] = pixels.shape[:2]
                    file.write(np.ascontiguousarray(pixels).data)
            with atomic_write(sizes) as temporary, open(temporary, "wb") as file:
                np.save(file, shapes, allow_pickle=False)
        except OSError as error:
            raise UserError(
                f"cannot decode {self!r} into {self.file}: {error}. Free some space, point the environment variable "
                "ADPE_CACHE_DIR at a writable folder, or set train_dataloader.dataset.cache=False."
            ) from error


def _stamp(path: Path) -> bytes:
    """Size and time of a file, of none where it is a dangling link."""
    try:
        status = path.stat()
    except OSError:
        return b"none\0"
    return f"{status.st_size} {status.st_mtime_ns}\0".encode()


def _read_sizes(path: Path, count: int) -> np.ndarray:
    """(N, 2) int32."""
    try:
        sizes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and the images are decoded anew.") from error
    if sizes.shape != (count, 2) or sizes.dtype != np.int32 or (sizes < 0).any():
        raise UserError(
            f"{path} has {sizes.dtype} values of shape {sizes.shape}, expected int32 of ({count}, 2): delete it, and "
            "the images are decoded anew."
        )
    return sizes
