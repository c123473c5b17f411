"""Top-1 and top-5 accuracy of classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor


def rank_of_label(scores: Tensor, label: int) -> int:
    """Classes ``(C,)`` that stand before the label's, 0 for a correct prediction; of equal scores the first is first.

    Scores that are not finite predict nothing: the label then has the last rank.
    """
    if not bool(torch.isfinite(scores).all()):
        return len(scores) - 1
    own = scores[label]
    return int((scores > own).sum() + (scores[:label] == own).sum())


@METRICS.register_module()
class AdPEAccuracy(BaseMetric):
    """``top1`` and, of more than five classes, ``top5``, in percent.

    `results` holds, image by image, ``(label, prediction, rank of the label)``.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            scores, label = sample["scores"], int(sample["label"])
            self.classes = len(scores)
            self.results.append((label, int(scores.argmax()), rank_of_label(scores, label)))

    def compute_metrics(self, results: list[tuple[int, int, int]]) -> dict[str, float]:
        ranks = torch.tensor([rank for _, _, rank in results])
        tops = (1, 5) if self.classes > 5 else (1,)
        return {f"top{k}": 100.0 * float((ranks < k).double().mean()) for k in tops}
