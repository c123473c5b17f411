"""Top-1 and top-5 accuracy of classification, and the protocol under which they are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
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


def accuracy_of(scores: Tensor, labels: Tensor, dataset: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Accuracy of ``(M, classes)`` scores against ``(M,)`` labels of a data set's images, in its order.

    Returns:
        ``top1`` and, of more than five classes, ``top5``, in percent; and the arrays of
        :mod:`adpe.evaluations.metrics.per_image`.
    """
    ranks = np.asarray([rank_of_label(row, int(label)) for row, label in zip(scores, labels, strict=True)], np.int32)
    arrays = {
        "classes": np.asarray(dataset.classes),
        "images": np.asarray(["/".join(Path(path).parts[-2:]) for path in dataset.paths()]),
        "label": labels.numpy().astype(np.int32),
        "prediction": scores.argmax(dim=1).numpy().astype(np.int32),
        "rank": ranks,
    }
    return _accuracy(ranks, scores.shape[1]), arrays


def _accuracy(ranks: np.ndarray, classes: int) -> dict[str, float]:
    return {f"top{k}": 100.0 * float(np.mean(ranks < k)) for k in ((1, 5) if classes > 5 else (1,))}


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
        return _accuracy(np.asarray([rank for _, _, rank in results]), self.classes)


def classification_protocol(cfg: Config) -> dict[str, Any]:
    """Of a record's fingerprint: the kind of head as published rows call it, and what its accuracy depends on."""
    model, train, test = cfg.model, cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    train, transform = train.get("dataset") or train, test.get("transform") or {}
    return {
        "head": "linear probe" if model.get("frozen") else "fine-tuning",
        "pooling": model.get("global_pool", "avg"),
        "epochs": cfg.train_cfg.max_epochs,
        "crop": transform.get("input_size"),
        "crop_pct": transform.get("crop_pct"),
        "augmented": bool((train.get("transform") or {}).get("is_training")),
        "images": [train.get("limit"), test.get("limit")],
    }
