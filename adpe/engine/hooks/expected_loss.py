"""Whether a training goes as the published one: mean losses of two early epochs beside a published curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from adpe.errors import UserError

_SHARES = (0.05, 0.25)


@HOOKS.register_module()
class AdPEExpectedLossHook(Hook):
    """Logs the mean loss of two early epochs beside what a published log has there, and warns if it is far from it.

    A run that resumes within such an epoch takes the mean of what is left of it. Nothing is stopped: another
    augmentation or batch moves a loss, too.

    Args:
        curve: pairs of an epoch, counted from 1, and its mean loss in the published run; straight lines in between.
        tolerance: share of the expected loss by which a run may differ; ours.

    Raises:
        UserError: for a curve without two epochs, or a tolerance that is no share.
    """

    priority = "NORMAL"

    def __init__(self, curve: Sequence[Sequence[float]], tolerance: float = 0.15) -> None:
        self.curve = sorted((int(epoch), float(loss)) for epoch, loss in curve)
        if len(self.curve) < 2 or not 0 < tolerance < 1:
            raise UserError(
                f"AdPEExpectedLossHook: curve={curve}, tolerance={tolerance}: expected two epochs at least and a "
                "share between 0 and 1."
            )
        self.tolerance = tolerance
        self.total: torch.Tensor | float = 0.0
        self.count = 0

    def expected(self, epoch: int) -> float | None:
        """The published mean loss of an epoch counted from 1; None outside the curve."""
        for (first, a), (last, b) in zip(self.curve, self.curve[1:], strict=False):
            if first <= epoch <= last:
                return a + (b - a) * (epoch - first) / (last - first)
        return None

    def before_train_epoch(self, runner: Any) -> None:
        self.total, self.count = 0.0, 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.total = self.total + outputs["loss"].detach()
        self.count += 1

    def after_train_epoch(self, runner: Any) -> None:
        epoch = runner.epoch + 1
        if epoch not in {max(1, round(share * runner.max_epochs)) for share in _SHARES} or not self.count:
            return
        mean, expected = float(self.total) / self.count, self.expected(epoch)
        if expected is None:
            return
        words = f"mean loss of epoch {epoch}: {mean:.4g}; published: about {expected:.4g}"
        if abs(mean - expected) <= self.tolerance * expected:
            runner.logger.info(words)
        else:
            runner.logger.warning(
                f"{words}. That is more than {self.tolerance:.0%} apart: compare data, augmentation, batch and rate "
                "with the recipe before the rest is spent."
            )
