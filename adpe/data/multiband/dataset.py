"""A pretraining data set of images of any number of channels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from adpe.data.sources.bands import BandSource
from adpe.data.views.multiband import MultiBandViews, SensorDrop
from adpe.data.views.multicrop import crop_generator


@DATASETS.register_module()
class AdPEMultiBandDataset(Dataset):
    """Multi-crop views of multi-band images, which depend on `seed`, the epoch and the index alone.

    Args:
        source: see :class:`adpe.data.sources.bands.BandSource`, as for `groups`, `stand_in` and `split`.
        groups: channels of each sensor by name.
        drop: ``p`` and ``probabilities`` of :class:`adpe.data.views.multiband.SensorDrop`.
        views: arguments of :class:`adpe.data.views.multiband.MultiBandViews`.
        stand_in: make fourteen bands of RGB images.
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
        self.images = BandSource(source, groups, stand_in, split)
        self.groups, self.channels = self.images.groups, self.images.channels
        self.views = MultiBandViews(SensorDrop(self.groups, **dict(drop or {})), **dict(views or {}))
        self.seed, self.stand_in = seed, stand_in
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw other views from the next batch on, in all worker processes. Call it between epochs."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`inputs`: groups of views ``(V, C, h, w)`` float32 in 0..1; `data_samples`: `index`."""
        generator = crop_generator(self.seed, int(self._epoch), index)
        groups = self.views(self.images.bands(index, generator), generator)
        return {"inputs": [torch.from_numpy(group) for group in groups], "data_samples": {"index": index}}
