"""The guard of labels: what they mean, how many classes there are, and whether any label is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from adpe.data.checks.inspection import first
from adpe.engine.hooks.silent_failures import turn_off
from adpe.engine.labels.outputs import check_outputs
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError

_IGNORED = 255
_OFF = turn_off("label_guard")


@HOOKS.register_module()
class AdPELabelGuard(Hook):
    """Stops before training or testing if classes do not fit together, and in the first pass if labels are wrong.

    Before training, the data set's ``metainfo["classes"]`` must be as many as the heads have, and be those of the
    validation data and of the checkpoint that is resumed; before testing, those of the checkpoint. Class folders are
    matched by name (`AdPEClassificationDataset.match_classes`), other data sets must agree in names and order.

    In the first pass over the training data a label that is no class stops the run, as no label at all does; classes
    that no label was of are named after it, and after training. The labels are `gt_sem_seg`, `gt_instances` and
    `gt_label` of the data samples, as OpenMMLab's data sets have them; other batches are left alone.
    """

    priority = "HIGH"
    trained: tuple[str, ...] = ()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Note the classes that the checkpoint was trained on."""
        self.trained = classes_of_checkpoint(checkpoint)

    def before_train(self, runner: Any) -> None:
        metainfo = _metainfo(runner.train_dataloader.dataset)
        self.classes = list(metainfo.get("classes") or ())
        self.seen = torch.zeros(len(self.classes), dtype=torch.bool)
        self.labelled = False
        self.ignored = self.counted = 0
        self.begin = runner.iter
        self.one_pass = max(1, len(runner.train_dataloader.dataset) // self._images(runner))
        check_outputs(unwrapped(runner.model), metainfo, "train_dataloader.dataset")
        if runner.val_loop is not None and self.classes:
            _match(runner.val_loop, self.classes, "val_dataloader", "train_dataloader")
        if self.trained and self.classes and self.trained != tuple(self.classes):
            text = _difference("train_dataloader", self.classes, str(runner._load_from), self.trained)
            if runner._resume:
                raise UserError(f"{text} Resume with the data of the run. {_OFF}")
            runner.logger.warning(f"{text} The head's outputs of the checkpoint mean other classes.")

    def before_test(self, runner: Any) -> None:
        metainfo = _metainfo(runner.test_dataloader.dataset)
        if self.trained and metainfo.get("classes"):
            _match(runner.test_loop, self.trained, "test_dataloader", f"the checkpoint {runner._load_from}")
            metainfo = _metainfo(runner.test_dataloader.dataset)
        check_outputs(unwrapped(runner.model), metainfo, "test_dataloader.dataset")

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if not self.classes or runner.iter >= self.begin + self.one_pass:
            return
        for sample, labels in _labels(data_batch):
            kept = labels[labels != _IGNORED]
            if not kept.numel():
                continue
            low, high = int(kept.min()), int(kept.max())
            if low < 0 or high >= len(self.classes):
                raise UserError(
                    f"{getattr(sample, 'img_path', 'a sample')}: has label {low if low < 0 else high}, expected "
                    f"0..{len(self.classes) - 1} for the "
                    f"{len(self.classes)} classes ({first(self.classes, 8)}) after loading, or {_IGNORED} = "
                    f"ignored. Correct the classes, reduce_zero_label or the annotations. {_OFF}"
                )

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.classes:
            return
        if not self.seen.all():
            for _, labels in _labels(data_batch):
                self.labelled = True
                counted = labels.flatten().cpu().long()
                self.counted += counted.numel()
                self.ignored += int((counted == _IGNORED).sum())
                # Ignored labels are outside of the classes.
                self.seen[counted[(counted >= 0) & (counted < len(self.classes))].unique()] = True
        if runner.iter + 1 == self.begin + self.one_pass:
            seen = self._everywhere()
            if not seen.any() and self.labelled:
                raise UserError(
                    f"the first {self.one_pass} iterations had no label of the {len(self.classes)} classes "
                    f"({first(self.classes, 8)}): all are ignored or missing. Look at reduce_zero_label, classes and "
                    f"the annotations of train_dataloader.dataset. {_OFF}"
                )
            self._tell(runner, seen)

    def after_train(self, runner: Any) -> None:
        if self.classes:
            self._tell(runner, self._everywhere())

    def _tell(self, runner: Any, everywhere: Tensor) -> None:
        seen = everywhere.tolist()
        absent = [str(name) for name, there in zip(self.classes, seen, strict=True) if not there]
        if absent and self.labelled:
            share = f" {self.ignored / self.counted:.0%} of the labels are ignored." if self.ignored else ""
            runner.logger.warning(
                f"{len(absent)} of {len(self.classes)} classes had no label in iterations {self.begin + 1} to "
                f"{min(runner.iter + 1, runner.max_iters)}, and are not learned: {first(absent, 20)}.{share} Look at "
                "classes and annotations of train_dataloader.dataset."
            )

    def _images(self, runner: Any) -> int:
        return int(runner.train_dataloader.batch_sampler.batch_size) * runner.world_size

    def _everywhere(self) -> Tensor:
        """Which classes any process has seen."""
        seen = self.seen.to(torch.int32)
        all_reduce(seen, "max")
        return seen.bool()


def classes_of_checkpoint(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Names that the labels of a checkpoint stand for: mmengine's ``dataset_meta``, mmcv's ``CLASSES``."""
    meta = checkpoint.get("meta") or {}
    names = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES") or ()
    return (names,) if isinstance(names, str) else tuple(str(name) for name in names)


def _metainfo(dataset: Any) -> dict[str, Any]:
    return getattr(dataset, "metainfo", None) or {}


def _match(loop: Any, classes: Sequence[str], where: str, other: str) -> None:
    """Hold the classes of a loop's data against `classes`, those of `other`; class folders are matched by name."""
    dataset = loop.dataloader.dataset
    own = tuple(_metainfo(dataset).get("classes") or ())
    if not own or own == tuple(classes):
        return
    inner = dataset
    while not hasattr(inner, "match_classes") and hasattr(inner, "dataset"):
        inner = inner.dataset
    if not hasattr(inner, "match_classes"):
        raise UserError(f"{_difference(where, own, other, classes)} Give both the same, in the same order. {_OFF}")
    inner.match_classes(classes)
    loop.evaluator.dataset_meta = dataset.metainfo


def _difference(where: str, own: Sequence[str], other: str, classes: Sequence[str]) -> str:
    label = next((i for i, (a, b) in enumerate(zip(own, classes, strict=False)) if a != b), min(len(own), len(classes)))
    names = [repr(names[label]) if label < len(names) else "no class" for names in (own, classes)]
    return (
        f"{where}.dataset has {len(own)} classes ({first(own, 8)}), {other} has {len(classes)} ({first(classes, 8)}): "
        f"label {label} is {names[0]} in the one, {names[1]} in the other."
    )


def _labels(batch: Any) -> Iterator[tuple[Any, Tensor]]:
    """The data samples of a batch and their labels."""
    samples = batch.get("data_samples") if isinstance(batch, dict) else None
    for sample in samples if isinstance(samples, (list, tuple)) else ():
        for name, field in (("gt_sem_seg", "data"), ("gt_instances", "labels"), ("gt_label", "label")):
            value = getattr(getattr(sample, name, None), field, None)
            if isinstance(value, Tensor):
                yield sample, value
