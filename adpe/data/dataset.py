"""The pretraining data set of mmengine's configs and the hook that tells it the epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import Dataset

from adpe.data.captions import Captions
from adpe.data.sources.images import ImageSource
from adpe.data.styles import check_style, stylise
from adpe.data.views.multicrop import MultiCrop, crop_generator
from adpe.data.views.part_maps import PartMaps
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
        maps: ``folder`` and ``num_parts`` of :class:`adpe.data.views.part_maps.PartMaps`, whose crops follow the
        images as a
            group of views of their own.
        captions: arguments of :class:`adpe.data.captions.Captions`, whose words follow likewise.
        labels: the number of the image's class folder plus 1 follows likewise, as (1,) int64.
        style: of :mod:`adpe.data.styles`, into which every second image is put, beginning with the second: the two
            domains of ``configs/cifar10_pacmac.py``, pooled. None leaves them all.

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
    ) -> None:
        groups: Sequence[dict[str, Any]] = [crops or {}] if crops is None or isinstance(crops, dict) else crops
        self.grouped = groups is crops
        self.crops = [MultiCrop(**group) for group in groups]
        self.images = ImageSource(source, split=split, on_corrupt=on_corrupt, cache_dir=cache_dir)
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
        image, delivered = self.images.load(index)
        if self.style is not None and delivered % 2:
            image = stylise(image, self.style, self.images.path(delivered))
        generator = crop_generator(self.seed, self.epoch, index)
        if self.maps is not None:
            (crops,) = self.crops
            boxes = crops.sample(image.height, image.width, generator)
            maps = self.maps.crops(delivered, (image.height, image.width), boxes, crops.size)
            inputs: Any = [crops.apply(image, boxes, generator), maps]
        elif self.captions is not None:
            inputs = [self.crops[0](image, generator), self.captions.draw(delivered, generator)]
        elif self.labels:
            inputs = [self.crops[0](image, generator), torch.tensor([self.images.label(delivered) + 1])]
        else:
            groups = [crops(image, generator) for crops in self.crops]
            inputs = groups if self.grouped else groups[0]
        path, label = self.images.path(delivered), self.images.label(delivered)
        return {"inputs": inputs, "data_samples": {"img_path": path, "index": delivered, "label": label}}


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
