"""Images of any number of bands, addressed by index: ``.npy`` files, or bands made of RGB as a stand-in."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from adpe.data.checks.inspection import sample
from adpe.data.sources.images import ImageSource
from adpe.errors import UserError

OPTICAL_BANDS = 12
logger = logging.getLogger(__name__)


def bands_of_rgb(image: np.ndarray, generator: random.Random, seed: int = 0) -> np.ndarray:
    """Fourteen bands that stand for Sentinel-2 and Sentinel-1 where only colours are at hand; a stand-in, no physics.

    Twelve optical bands are mixtures of the three colours with gains, the same for all images. Two radar bands, the
    gradient's magnitude and smoothed intensity, have multiplicative speckle (gamma distributed, 4 looks), which is new
    for every draw.

    Args:
        image: ``(H, W, 3)`` uint8.
        generator: of the speckle.
        seed: of the mixtures.

    Returns:
        ``(H, W, 14)`` uint8, the optical bands first.
    """
    mixtures = np.random.default_rng(seed)
    weights = mixtures.dirichlet(np.ones(3), OPTICAL_BANDS) * mixtures.uniform(0.6, 1.4, (OPTICAL_BANDS, 1))
    optical = image.astype(np.float32) @ weights.T.astype(np.float32)
    intensity = image.astype(np.float32).mean(axis=-1)
    gradient = np.hypot(cv2.Sobel(intensity, cv2.CV_32F, 1, 0), cv2.Sobel(intensity, cv2.CV_32F, 0, 1)) / 4
    smooth = cv2.GaussianBlur(intensity, (0, 0), 1.5)
    noise = np.random.default_rng(generator.getrandbits(64))
    radar = np.stack([gradient, smooth], axis=-1) * noise.gamma(4.0, 0.25, (*image.shape[:2], 2))
    return np.clip(np.concatenate([optical, radar], axis=-1), 0, 255).astype(np.uint8)


class BandSource:
    """Bytes ``(H, W, C)`` of each image. A sensor that is constant in a sample of the images is told in a warning.

    Args:
        source: folder of ``.npy`` files of bytes ``(H, W, C)``, searched recursively; with `stand_in` any source of
            :class:`adpe.data.sources.images.ImageSource`.
        groups: channels of each sensor by name; each of the channels from 0 once.
        stand_in: make fourteen bands of RGB images, see :func:`bands_of_rgb`.
        split: folder inside the source to restrict it to.
        on_corrupt: of `ImageSource`, for the stand-in; a ``.npy`` file that cannot be read is an error.

    Attributes:
        groups: as given.
        channels: C.

    Raises:
        UserError: for a source without files, files of another kind, or channels that no sensor has.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        groups: Mapping[str, Sequence[int]],
        stand_in: bool = False,
        split: str | None = None,
        on_corrupt: str = "skip",
    ) -> None:
        self.groups = {name: tuple(group) for name, group in groups.items()}
        self.channels = sum(map(len, self.groups.values()))
        if sorted(channel for group in self.groups.values() for channel in group) != list(range(self.channels)):
            raise UserError(f"multi-band data: groups = {self.groups}: expected each of the channels from 0 once.")
        self.rgb: ImageSource | None = None
        self._files: list[str] = []
        if stand_in:
            if self.channels != OPTICAL_BANDS + 2:
                raise UserError(f"multi-band data: stand_in makes 14 channels, groups have {self.channels}.")
            self.rgb = ImageSource(source, split=split, on_corrupt=on_corrupt)
        else:
            folder = Path(source).expanduser() / (split or "")
            self._files = sorted(str(path) for path in folder.rglob("*.npy"))
            if not self._files:
                raise UserError(
                    f"multi-band data: {folder} has no .npy files. Expected bytes (height, width, {self.channels}) "
                    "each."
                )
        self._warn_of_constant_sensors(Path(source) / (split or ""))

    def __len__(self) -> int:
        return len(self._files) if self.rgb is None else len(self.rgb)

    @cached_property
    def paths(self) -> list[str]:
        """Every image's `path(index)`."""
        return [self.path(index) for index in range(len(self))]

    def path(self, index: int) -> str:
        """Path of an image."""
        return self._files[index] if self.rgb is None else self.rgb.path(index)

    def label(self, index: int) -> int:
        """Of the stand-in's class folders; -1 for files of bands."""
        return -1 if self.rgb is None else self.rgb.label(index)

    def read(self, index: int) -> bytes:
        """The file's contents."""
        return Path(self._files[index]).read_bytes() if self.rgb is None else self.rgb.read(index)

    def bands(self, index: int, generator: random.Random) -> np.ndarray:
        """Bytes ``(H, W, C)``.

        Args:
            index: of the image.
            generator: of the stand-in's speckle.

        Raises:
            UserError: for a file of another type or shape; it names the file.
        """
        if self.rgb is not None:
            return bands_of_rgb(np.asarray(self.rgb.open(index)), generator)
        path = self._files[index]
        try:
            image = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read as an array: {error}. Write it again with numpy.save.") from None
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            raise UserError(f"{path} is {image.dtype} {image.shape}, expected uint8 (height, width, {self.channels}).")
        return image

    def _warn_of_constant_sensors(self, where: Path) -> None:
        """Reads a sample, so that files of another kind are told before a training, too."""
        indices = sample(range(len(self)))
        images = [self.bands(index, random.Random(index)) for index in indices]
        low = np.min([image.min(axis=(0, 1)) for image in images], axis=0)
        high = np.max([image.max(axis=(0, 1)) for image in images], axis=0)
        for name, group in self.groups.items():
            if (low[list(group)] == high[list(group)]).all():
                logger.warning(
                    "%s: the sensor %s is constant, %s, in %d of %d images that were looked at: it tells nothing.",
                    where, name, sorted(set(low[list(group)].tolist())), len(indices), len(indices),
                )  # fmt: skip
