"""The pretraining data set of mmengine's configs and the hook that tells it the epoch."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from adpe.data.captions import Captions
from adpe.data.sources.decoded import DecodedSource
from adpe.data.sources.images import ImageSource
from adpe.data.views.batch_crops import SMALL, crop_batch
from adpe.data.views.device_crops import LARGEST
from adpe.data.views.multicrop import CropBox, MultiCrop, crop_generator, reduced
from adpe.data.views.part_maps import PartMaps
from adpe.data.views.styles import check_style, stylise
from adpe.errors import UserError


@DATASETS.register_module()
class AdPEImageDataset(Dataset):
    """Images as `MultiCrop` crops that depend on `seed`, the epoch and the index alone.

    No global random state is read, so crops are the same for any number of workers and after a resume. The epoch comes
    from `AdPEEpochHook` and lies in shared memory, where persistent workers see it change.

    Args:
        source: folder, archive, or list of them; see `ImageSource`.
        split: folder inside the source to restrict it to.
        crops: arguments of `MultiCrop`, or a list of them, one for each group of views.
        seed: of the crops.
        on_corrupt: ``"skip"`` or ``"error"``; see `ImageSource`.
        cache_dir: where compressed tars are unpacked; see `ImageSource`.
        maps: ``folder`` and ``num_parts`` of :class:`adpe.data.views.part_maps.PartMaps`, whose crops follow the images
            as a group of views of their own.
        captions: arguments of :class:`adpe.data.captions.Captions`, whose words follow likewise.
        labels: the number of the image's class folder plus 1 follows likewise, as (1,) int64.
        style: of :mod:`adpe.data.views.styles`, into which every second image is put, beginning with the second: the
            two domains of ``configs/cifar10/pacmac.py``, pooled. None leaves them all.
        cache: decode the images once, into a memory-mapped file (`adpe.data.sources.decoded.DecodedSource`), and crop
            small ones in batch. The samples are equal to those without it in every bit.
        crop_on: ``"device"`` lets a batch be cropped by `adpe.engine.pretraining.AdPECropsPreprocessor`, again equal in
            every bit; the launcher asks for it where there is a GPU. Single samples are always cropped here.
        decode: ``"scaled"`` decodes a JPEG at a half, quarter or eighth of its size where every crop still has at least
            `crops.size` pixels along both sides; the boxes are those of ``"full"``, rounded to the pixels left.

    Raises:
        UserError: what `ImageSource`, `MultiCrop` and `PartMaps` raise.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        split: str | None = None,
        crops: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        seed: int = 0,
        on_corrupt: str = "skip",
        cache_dir: str | os.PathLike[str] | None = None,
        maps: dict[str, Any] | None = None,
        captions: dict[str, Any] | None = None,
        labels: bool = False,
        style: str | None = None,
        cache: bool = False,
        crop_on: str = "cpu",
        decode: str = "full",
    ) -> None:
        groups: Sequence[dict[str, Any]] = [crops or {}] if crops is None or isinstance(crops, dict) else crops
        self.grouped = groups is crops
        self.crops = [MultiCrop(**group) for group in groups]
        kind = DecodedSource if cache else ImageSource
        self.images = kind(source, split=split, on_corrupt=on_corrupt, cache_dir=cache_dir)
        self.maps = None if maps is None else PartMaps(**maps, images=self.images.paths)
        if self.maps is not None and self.grouped:
            raise UserError("maps go with one group of crops, not with a list.")
        self.captions = None if captions is None else Captions(**captions, images=self.images.paths)
        self.labels = labels
        check_style(style)
        self.style = style
        if sum((maps is not None, captions is not None, labels)) > 1 or (self.grouped and (captions or labels)):
            raise UserError("one of maps, captions and labels goes with one group of crops, not with a list.")
        if captions is not None and self.crops[0].hflip:
            raise UserError(
                f"captions of flipped images may tell left from right: set crops.hflip=0, not {self.crops[0].hflip}."
            )
        if labels and not self.images.classes:
            raise UserError(f"labels: {source} has no folders of classes.")
        plain = all(not any(group.colors) and group.resize == "torch" for group in self.crops)
        plain = plain and maps is None and captions is None and not labels
        if crop_on not in ("cpu", "device"):
            raise UserError(f"crop_on={crop_on!r}: expected 'cpu' or 'device'.")
        if crop_on == "device" and not (plain and all(group.normalize == "device" for group in self.crops)):
            raise UserError(
                "crop_on='device' takes crops with normalize='device' and resize='torch', without color, and no maps, "
                "captions or labels."
            )
        if decode not in ("full", "scaled"):
            raise UserError(f"decode={decode!r}: expected 'full' or 'scaled'.")
        if decode == "scaled" and (cache or self.grouped or maps is not None):
            raise UserError("decode='scaled' goes with one group of crops, without cache and maps.")
        # Private, for what makes no difference to the samples is no part of the protocol; decode stands in the config.
        self._in_batch = plain and (cache or crop_on == "device")
        self._crop_on, self._scaled = crop_on, decode == "scaled"
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names, which mmengine stores in checkpoints."""
        return {"classes": tuple(self.images.classes)}

    @property
    def epoch(self) -> int:
        """The epoch whose crops are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops from the next batch on, in all worker processes. Call it between epochs."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, for mmengine's `default_collate`.

        Returns:
            `inputs`: (K, 3, size, size) crops, or a list of them for a list of `crops`, or with `maps` a list of them
            and of (K, 1, size, size) int16; `data_samples`: dict of `img_path` (str), `index` and `label` (int; -1
            without class folders) of the image delivered, another than asked for where a corrupt one was skipped.
            With `captions` or `labels` `inputs` is a list of crops and (T,) int64.
            Collated: `inputs` (B, K, 3, size, size), `img_path` list of B, `index` and `label` (B,) int64.
        """
        (pixels, boxes, generator), delivered = self.images.readable(index, lambda at: self._read(at, index))
        height, width = pixels.shape[:2]
        crops = self.crops[0].apply(pixels, boxes, generator)
        inputs: Any = crops
        if self.grouped:
            others = self.crops[1:]
            drawn = (group.apply(pixels, group.sample(height, width, generator), generator) for group in others)
            inputs = [crops, *drawn]
        elif self.maps is not None:
            inputs = [crops, self.maps.crops(delivered, (height, width), boxes, self.crops[0].size)]
        elif self.captions is not None:
            inputs = [crops, self.captions.draw(delivered, generator)]
        elif self.labels:
            inputs = [crops, torch.tensor([self.images.label(delivered) + 1])]
        return self._sample(inputs, delivered)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of a batch, which a loader asks for: those of `__getitem__` by fewer, larger operations.

        Returns:
            samples; with ``crop_on="device"`` and images of at most 256 pixels along a side their `inputs` are
            `images`, (H, W, 3) uint8, padded at the right and the bottom to the largest of the batch, and `boxes`, for
            each group (K, 5) int32 as of `adpe.data.views.batch_crops.crop_batch`.
        """
        if not self._in_batch:
            return [self[index] for index in indices]
        found = [self.images.readable(index, partial(self._read_for_all, index=index)) for index in indices]
        delivered = [at for _, at in found]
        images = [pixels for (pixels, _), _ in found]
        groups = [np.array(boxes, dtype=np.int32) for boxes in zip(*(boxes for (_, boxes), _ in found), strict=True)]
        if self._crop_on == "device" and max(max(image.shape) for image in images) <= LARGEST:
            padded, boxes = torch.from_numpy(_padded(images)), [torch.from_numpy(group) for group in groups]
            inputs: list[Any] = [
                {"images": image, "boxes": list(mine)} for image, *mine in zip(padded, *boxes, strict=True)
            ]
        else:
            made = [self._crop(crops, images, group) for crops, group in zip(self.crops, groups, strict=True)]
            inputs = [list(mine) for mine in zip(*made, strict=True)] if self.grouped else list(made[0])
        return [self._sample(one, at) for one, at in zip(inputs, delivered, strict=True)]

    def _read(self, at: int, index: int) -> tuple[np.ndarray, list[CropBox], random.Random]:
        """Pixels of image `at`, the boxes that sample `index` has of them, and the generator that drew those."""
        drawn: list[tuple[list[CropBox], random.Random]] = []

        def draw(height: int, width: int) -> int:
            generator = crop_generator(self.seed, self.epoch, index)
            boxes = self.crops[0].sample(height, width, generator)
            drawn[:] = [(boxes, generator)]
            return self.crops[0].reduction(boxes) if self._scaled else 1

        pixels, factor = self.images.decode_pixels(at, draw)
        ((boxes, generator),) = drawn
        if self.style is not None and at % 2:
            pixels = np.asarray(stylise(Image.fromarray(pixels), self.style, self.images.path(at)))
        return pixels, reduced(boxes, factor), generator

    def _read_for_all(self, at: int, index: int) -> tuple[np.ndarray, list[list[CropBox]]]:
        """Pixels, and the boxes of every group; without colours nothing else is drawn."""
        pixels, first, generator = self._read(at, index)
        height, width = pixels.shape[:2]
        return pixels, [first, *(group.sample(height, width, generator) for group in self.crops[1:])]

    def _crop(self, crops: MultiCrop, images: list[np.ndarray], boxes: np.ndarray) -> Tensor:
        """(B, K, 3, size, size) of a batch."""
        if len({image.shape for image in images}) == 1 and max(images[0].shape) <= SMALL:
            return crops.finish(crop_batch(np.stack(images), boxes, crops.size, crops.interpolation))
        return torch.stack([crops.apply(*one) for one in zip(images, boxes.tolist(), strict=True)])

    def _sample(self, inputs: Any, delivered: int) -> dict[str, Any]:
        path, label = self.images.path(delivered), self.images.label(delivered)
        return {"inputs": inputs, "data_samples": {"img_path": path, "index": delivered, "label": label}}


def _padded(images: list[np.ndarray]) -> np.ndarray:
    """(B, H, W, 3) of the largest height and width."""
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    out = np.zeros((len(images), height, width, 3), np.uint8)
    for one, image in zip(out, images, strict=True):
        one[: image.shape[0], : image.shape[1]] = image
    return out


@HOOKS.register_module()
class AdPEEpochHook(Hook):
    """Gives the training data set the epoch, also the first one after a resume.

    Raises:
        UserError: before training, if the loop does not count epochs or the data set has no `set_epoch`: every pass
            over the images would then repeat the same crops.
    """

    def before_train(self, runner: Runner) -> None:
        """Check that the epoch can be counted and passed on."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise UserError(
                f"train_cfg: {type(runner.train_loop).__name__} does not count epochs, so every pass would see the "
                "same crops. Use dict(by_epoch=True, max_epochs=...)."
            )
        if not hasattr(runner.train_dataloader.dataset, "set_epoch"):
            name = type(runner.train_dataloader.dataset).__name__
            raise UserError(f"train_dataloader.dataset: {name} has no set_epoch; expected AdPEImageDataset.")

    def before_train_epoch(self, runner: Runner) -> None:
        """Pass it on, before the loader's workers fetch the epoch's first batch."""
        runner.train_dataloader.dataset.set_epoch(runner.epoch)
