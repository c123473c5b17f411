"""The private parts of mmengine, mmdet and torch that we use; tests/engine/test_mmengine_internals.py says what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import Registry


def is_lazy_config(path: str | Path) -> bool:
    """Whether mmengine reads a config by imports (``with read_base():``) instead of executing it after its bases."""
    return bool(Config._is_lazy_import(str(path)))


def set_position(runner: Any, epoch: int, iteration: int) -> None:
    """Let a training loop continue after this many epochs and iterations."""
    runner.train_loop._epoch, runner.train_loop._iter = epoch, iteration
    runner.message_hub.update_info("epoch", epoch)
    runner.message_hub.update_info("iter", iteration)


def mark_loaded(runner: Any) -> None:
    """Keep a runner from loading ``load_from`` again: the weights are in the model."""
    runner._has_loaded = True


def set_iterator(loop: Any, iterator: Any) -> bool:
    """Let an iteration-based training loop take its batches from `iterator`. Returns False for a loop by epochs."""
    if not hasattr(loop, "dataloader_iterator"):
        return False
    loop.dataloader_iterator = iterator
    return True


def end_workers(loader: Any) -> None:
    """End the workers that a DataLoader keeps between passes (``persistent_workers``); another pass starts new ones."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        loader._iterator = None


def accumulation(optim_wrapper: Any) -> int:
    """The number of batches whose gradients make one optimizer step."""
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    return max(int(each._accumulative_counts) for each in wrappers)


def between_steps(optim_wrapper: Any) -> bool:
    """Whether gradients are there that no optimizer step has taken yet."""
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    return any(each._inner_count % each._accumulative_counts for each in wrappers)


class FailedBuild(NamedTuple):
    """Where the building of a component failed: the class, if it was found, and the registry that was asked."""

    component: type | None
    registry: Registry | None


def failed_build(error: BaseException) -> FailedBuild | None:
    """What mmengine's registry was doing when it raised `error`, from its stack frame; None if it did not raise it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or f"mmengine{os.sep}registry" not in trace.tb_frame.f_code.co_filename:
        return None
    names = trace.tb_frame.f_locals
    return FailedBuild(names.get("obj_cls"), names.get("registry"))


class StepCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose saving of one checkpoint, `save_step`, can be replaced."""

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        self.save_step(runner, step, meta)

    def save_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        """Save the checkpoint of an epoch or iteration, and remove the oldest one if there are too many.

        Args:
            step: number of the epoch or iteration that is over.
            meta: ``epoch`` and ``iter`` of the checkpoint.
        """
        super()._save_checkpoint_with_step(runner, step, meta)


def coco_ground_truth(metric: Any) -> Any | None:
    """The ground truth of mmdet's CocoMetric, as its COCO class holds it; None until it is read."""
    return metric._coco_api


class CascadeStages:
    """Beside mmdet's CascadeRoIHead, before it among the bases: its forward passes, which can be replaced."""

    def box_results(self, stage: int, x: Any, rois: Any) -> dict[str, Any]:
        """``cls_score`` and ``bbox_pred`` of a stage for boxes of shape (n, 5), from feature maps."""
        results: dict[str, Any] = super()._bbox_forward(stage, x, rois)  # type: ignore[misc]
        return results

    def mask_results(self, stage: int, x: Any, rois: Any) -> dict[str, Any]:
        """``mask_preds`` of a stage for boxes of shape (n, 5), from feature maps."""
        results: dict[str, Any] = super()._mask_forward(stage, x, rois)  # type: ignore[misc]
        return results

    def refine(self, x: Any, rois: Any, batch_img_metas: Any, num_proposals_per_img: Any, **kwargs: Any) -> Any:
        """Boxes, scores and deltas of the last stage at test, a tuple entry per image."""
        return super()._refine_roi(x, rois, batch_img_metas, num_proposals_per_img, **kwargs)  # type: ignore[misc]

    def _bbox_forward(self, stage: int, x: Any, rois: Any) -> dict[str, Any]:
        return self.box_results(stage, x, rois)

    def _mask_forward(self, stage: int, x: Any, rois: Any) -> dict[str, Any]:
        return self.mask_results(stage, x, rois)

    def _refine_roi(self, x: Any, rois: Any, batch_img_metas: Any, num_proposals_per_img: Any, **kwargs: Any) -> Any:
        return self.refine(x, rois, batch_img_metas, num_proposals_per_img, **kwargs)
