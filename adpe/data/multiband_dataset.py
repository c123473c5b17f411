"""A pretraining data set of images of any number of channels, and bands made of RGB where there is no such data."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from adpe.data.sources.images import ImageSource
from adpe.data.views.multiband import MultiBandViews, SensorDrop
from adpe.data.views.multicrop import crop_generator
from adpe.errors import UserError

OPTICAL_BANDS = 12


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


@DATASETS.register_module()
class AdPEMultiBandDataset(Dataset):
    """Multi-crop views of multi-band images, which depend on `seed`, the epoch and the index alone.

    Args:
        source: folder of ``.npy`` files of bytes ``(H, W, C)``, searched recursively; with `stand_in` any source of
            :class:`adpe.data.sources.images.ImageSource`.
        groups: channels of each sensor by name.
        drop: ``p`` and ``probabilities`` of :class:`adpe.data.views.multiband.SensorDrop`.
        views: arguments of :class:`adpe.data.views.multiband.MultiBandViews`.
        stand_in: make fourteen bands of RGB images, see :func:`bands_of_rgb`.
        split: folder inside the source to restrict it to.
        seed: of the views.

    Raises:
        UserError: for a source without files, files of another kind, or channels that no sensor has.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        groups: Mapping[str, Sequence[int]],
        drop: Mapping[str, Any] | None = None,
        views: Mapping[str, Any] | None = None,
        stand_in: bool = False,
        split: str | None = None,
        seed: int = 0,
    ) -> None:
        self.groups = {name: tuple(group) for name, group in groups.items()}
        self.channels = sum(map(len, self.groups.values()))
        if sorted(channel for group in self.groups.values() for channel in group) != list(range(self.channels)):
            raise UserError(f"multi-band data: groups = {self.groups}: expected each of the channels from 0 once.")
        self.views = MultiBandViews(SensorDrop(self.groups, **dict(drop or {})), **dict(views or {}))
        self.seed, self.stand_in = seed, stand_in
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if stand_in:
            if self.channels != OPTICAL_BANDS + 2:
                raise UserError(f"multi-band data: stand_in makes 14 channels, groups have {self.channels}.")
            self.images = ImageSource(source, split=split)
            return
        folder = Path(source).expanduser() / (split or "")
        self.paths = sorted(str(path) for path in folder.rglob("*.npy"))
        if not self.paths:
            raise UserError(
                f"multi-band data: {folder} has no .npy files. Expected bytes (height, width, {self.channels}) each."
            )
        self.image(0, random.Random(0))  # another number of channels is told before training

    def set_epoch(self, epoch: int) -> None:
        """Draw other views from the next batch on, in all worker processes. Call it between epochs."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images) if self.stand_in else len(self.paths)

    def image(self, index: int, generator: random.Random) -> np.ndarray:
        """Bytes ``(H, W, C)``.

        Raises:
            UserError: for a file of another type or shape; it names the file.
        """
        if self.stand_in:
            return bands_of_rgb(np.asarray(self.images.load(index)[0].convert("RGB")), generator)
        path = self.paths[index]
        try:
            image = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read as an array: {error}. Write it again with numpy.save.") from None
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            raise UserError(f"{path} is {image.dtype} {image.shape}, expected uint8 (height, width, {self.channels}).")
        return image

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`inputs`: groups of views ``(V, C, h, w)`` float32 in 0..1; `data_samples`: `index`."""
        generator = crop_generator(self.seed, int(self._epoch), index)
        groups = self.views(self.image(index, generator), generator)
        return {"inputs": [torch.from_numpy(group) for group in groups], "data_samples": {"index": index}}
