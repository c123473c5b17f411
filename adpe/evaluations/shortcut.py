"""Does a linear head on frozen features take a shortcut? A cue beside the object gives its class away in training.

After the question of SGT (arXiv 2206.08567), whose data are medical and not public; this test is ours. The border's
colour tells the class in training; at test it does so as well, says nothing, or is gone. An encoder that keeps to the
object loses little. An object in the middle favours choosers of patches that prefer the middle:
``place="random"`` of the data takes that away, and both belong in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adpe.data.bordered import AdPEBorderedDataset
from adpe.errors import UserError
from adpe.evaluations.base import Result, Subject
from adpe.evaluations.linear_probe import LinearProbe
from adpe.evaluations.metrics.accuracy import accuracy_of

# By loader: what its borders are, and the metric.
_TESTS = {"cue": ("class", "top1_cue"), "val": ("random", "top1_no_cue"), "plain": ("none", "top1_no_border")}
_SHOWN = 6


class Shortcut(LinearProbe):
    """A linear probe on images with a cue, tested on images with it, with a random one, and without.

    Metrics: ``top1_cue``, ``top1_no_cue``, ``top1_no_border``, and ``shortcut = top1_cue - top1_no_cue`` in points.
    Arguments as :class:`LinearProbe`. The config has the loaders train, val, cue and plain, of `AdPEBorderedDataset`.
    """

    head = "linear probe on a cue"

    def check(self, data: Mapping[str, Any]) -> None:
        super().check(data)
        for name, border in {"train": "class", **{name: border for name, (border, _) in _TESTS.items()}}.items():
            found = data.get(name)
            if not isinstance(found, AdPEBorderedDataset) or found.border != border:
                said = getattr(found, "border", None)
                raise UserError(f'{name}_dataloader: expected an AdPEBorderedDataset of border="{border}", got {said}.')

    def run(self, subject: Subject) -> Result:
        head = self.trained(subject)
        metrics: dict[str, float] = {}
        for name, (_, metric) in _TESTS.items():
            found, arrays = accuracy_of(*self.scores(head, subject, name), subject.dataset(name))
            metrics[metric] = found["top1"]
            if name == "val":
                per_image = arrays
        metrics["shortcut"] = metrics["top1_cue"] - metrics["top1_no_cue"]
        return Result(metrics, per_image, {"borders": self._figure(subject)})

    def _figure(self, subject: Subject) -> Any:
        from adpe.viz.figures import draw_images

        titles = {"train": "training", "cue": "test, cue", "val": "test, random", "plain": "test, none"}
        rows = {}
        for name, title in titles.items():
            dataset = subject.dataset(name)
            images = torch.stack([dataset[i]["inputs"] for i in range(min(_SHOWN, len(dataset)))])
            low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
            rows[title] = (images - low) / (high - low)
        return draw_images(rows, "The colour of the border tells the class in training")
