"""Top-1 and top-5 accuracy of classification, and the protocol under which they are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from adpe.evaluations.frozen_features import augments


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


def classification_protocol(cfg: Config) -> dict[str, Any]:
    """Of a record's fingerprint: the kind of head as published rows call it, and what its accuracy depends on."""
    model, train, test = cfg.model, cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    knn = model.type == "AdPEKNNClassifier"
    train, transform = train.get("dataset") or train, test.get("transform") or {}
    return {
        "head": "k-NN" if knn else "linear probe" if model.get("frozen") else "fine-tuning",
        "pooling": model.get("global_pool", "avg"),
        "neighbours": [model.get("k", 20), model.get("temperature", 0.07)] if knn else None,
        "epochs": cfg.train_cfg.max_epochs,
        "crop": transform.get("input_size"),
        "crop_pct": transform.get("crop_pct"),
        "augmented": augments(train),
        "images": [train.get("limit"), test.get("limit")],
    }
