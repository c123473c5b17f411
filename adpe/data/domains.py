"""Labelled images of one domain for adaptation: class folders per domain, clean, augmented, or both of each image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from mmengine.registry import DATASETS

from adpe.data.classification import AdPEClassificationDataset, spaced
from adpe.data.views.styles import check_style, stylise
from adpe.errors import UserError

View = Literal["clean", "augmented", "pair"]


@DATASETS.register_module()
class AdPEDomainDataset(AdPEClassificationDataset):
    """One domain of ``ROOT/<domain>/<class>/<image>``, as PACMAC (arXiv 2206.08222) looks at it.

    Args:
        source: ROOT, a folder or an archive; see `ImageSource`.
        split: the domain, a folder of ROOT.
        transform: of clean images, options of ``timm.data.create_transform``.
        view: "clean", "augmented", or "pair" of both.
        augmentation: for the views that need it: ``resize`` (side to which both sides of the image are scaled),
            ``crop`` (side of the random crop), ``hflip`` (probability) and ``rand_augment`` (timm's words,
            ``"rand-m2-n1-p1-inc1"``, or None), then the clean transform's normalisation.
        part: ``of`` and ``take``: of the images, numbered in order, those whose number modulo `of` is in `take`. A
            class is spread evenly over the parts. None takes all.
        style: of :mod:`adpe.data.views.styles`, which every image is put into first; None leaves it.
        num_classes: class folders that have to be there.
        limit: images at most, evenly spaced, of those of `part`.
        on_corrupt: "skip" or "error".
        cache_dir: where compressed tars are unpacked.

    Raises:
        UserError: what `AdPEClassificationDataset` raises, and for options that cannot be.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        split: str | None = None,
        transform: dict[str, Any] | None = None,
        view: View = "clean",
        augmentation: Mapping[str, Any] | None = None,
        part: Mapping[str, Any] | None = None,
        style: str | None = None,
        num_classes: int | None = None,
        limit: int | None = None,
        on_corrupt: str = "error",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(source, split, transform, num_classes, limit, on_corrupt, cache_dir)
        if view not in get_args(View):
            raise UserError(f"view = {view!r} is none of {', '.join(get_args(View))}.")
        if view != "clean" and augmentation is None:
            raise UserError(
                f"view = {view!r} needs augmentation=dict(resize=..., crop=..., hflip=..., rand_augment=...)."
            )
        check_style(style)
        self.view, self.style = view, style
        if part is not None:
            of, take = part_of(part)
            own = [index for index in range(len(self.images)) if index % of in take]
            self.chosen = [own[index] for index in spaced(len(own), limit)]
        if not self.chosen:
            raise UserError(f"{self.images!r}: part = {dict(part or {})} leaves no image.")
        self.augmentation = None if augmentation is None or view == "clean" else self._augment(**augmentation)

    def _augment(
        self, resize: int, crop: int, hflip: float = 0.5, rand_augment: str | None = "rand-m2-n1-p1-inc1"
    ) -> Any:
        from timm.data.auto_augment import rand_augment_transform
        from torchvision import transforms

        if not 0 < crop <= resize or not 0 <= hflip <= 1:
            raise UserError(
                f"augmentation: crop = {crop!r}, resize = {resize!r}, hflip = {hflip!r}: expected a crop of at most "
                "resize pixels, and a probability."
            )
        *_, to_tensor, normalise = self.transform.transforms
        steps = [
            transforms.Resize((resize, resize)),
            transforms.RandomCrop(crop),
            transforms.RandomHorizontalFlip(hflip),
        ]
        if rand_augment is not None:
            mean = tuple(round(255 * float(value)) for value in normalise.mean)
            try:
                steps.append(rand_augment_transform(rand_augment, {"translate_const": crop // 3, "img_mean": mean}))
            except (AssertionError, ValueError, KeyError) as error:
                raise UserError(
                    f"augmentation.rand_augment = {rand_augment!r}: timm cannot read it ({error})."
                ) from None
        return transforms.Compose([*steps, to_tensor, normalise])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Returns:
            `inputs`: ``(3, H, W)`` float32 normalised, clean, or augmented with ``view="augmented"``; `augmented`: the
            same of a pair; `data_samples` as of `AdPEClassificationDataset`.
        """
        image, delivered = self.images.load(self.chosen[index])
        path, label = self.images.path(delivered), int(self._labels[delivered])
        if self.style is not None:
            image = stylise(image, self.style, path)
        told = {"data_samples": {"img_path": path, "index": delivered, "label": label}}
        if self.view == "clean":
            return {"inputs": self.transform(image), **told}
        assert self.augmentation is not None
        if self.view == "augmented":
            return {"inputs": self.augmentation(image), **told}
        return {"inputs": self.transform(image), "augmented": self.augmentation(image), **told}

    def class_names(self) -> set[str]:
        """Of the class folders of the images that are used, whatever the labels were matched to."""
        numbers = np.unique(self.images.labels[self.chosen])
        return {self.images.classes[number] for number in numbers}


def part_of(part: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """``of`` and ``take`` of a part.

    Raises:
        UserError: unless `take` has numbers from 0 to below `of`.
    """
    of, take = part.get("of"), tuple(part.get("take") or ())
    whole = [value for value in (of, *take) if isinstance(value, int) and not isinstance(value, bool)]
    if set(part) != {"of", "take"} or len(whole) != 1 + len(take) or not take or not 0 <= min(take) <= max(take) < of:
        raise UserError(f"part = {dict(part)}: expected dict(of=N, take=[numbers from 0 to N - 1]).")
    return int(whole[0]), take
