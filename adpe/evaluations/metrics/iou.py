"""Mean IoU to the last digit: mmseg rounds it to 0.01, after sums of pixels in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric


@METRICS.register_module()
class AdPEIoUMetric(IoUMetric):
    """mmseg's `IoUMetric`, whose ``aAcc`` and means over classes, in percent, are not rounded."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """As mmseg's; `results` holds four areas ``(classes,)`` an image, in pixels."""
        metrics = super().compute_metrics(results)
        if self.format_only or not results:
            return metrics
        totals = [torch.stack([area.double() for area in areas]).sum(0) for areas in zip(*results, strict=True)]
        exact = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
        for name, values in exact.items():
            metrics["aAcc" if name == "aAcc" else f"m{name}"] = float(np.nanmean(np.asarray(values)) * 100)
        return metrics
