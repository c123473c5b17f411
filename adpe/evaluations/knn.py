"""k-NN accuracy of frozen features: how good a representation is before anything is trained on it.

The protocol is that of InstDisc (arXiv 1805.01978) as DINO uses it (arXiv 2104.14294, sec. 4.1): cosine similarity to
the k nearest training images, votes weighted by ``exp(similarity / 0.07)``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, Result, Subject
from adpe.evaluations.features.frozen_encoder import block_tokens, pool_tokens
from adpe.evaluations.metrics.accuracy import accuracy_of


class KNN(Evaluation):
    """Weighted k-NN on the pooled features of the training images.

    Args:
        k: neighbours.
        temperature: of the votes.
    """

    head = "k-NN"

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1 or not temperature > 0:
            raise ValueError(f"k = {k!r} and temperature = {temperature!r} must be positive, k a whole number.")
        self.k, self.temperature = k, temperature

    def facts(self) -> dict[str, Any]:
        return {"neighbours": [self.k, self.temperature]}

    def check(self, data: Any) -> None:
        images = len(data["train"])
        if self.k > images:
            raise UserError(f"evaluation.k = {self.k} with {images} training images: expected 1 to {images}.")

    def run(self, subject: Subject) -> Result:
        (bank, labels), (test, wanted) = subject.features("train"), subject.features("val")
        dataset = subject.dataset("val")
        bank, test = (F.normalize(part, dim=1).to(subject.device) for part in (bank, test))
        scores = knn_votes(bank, labels.to(bank.device), test, len(dataset.classes), self.k, self.temperature)
        return Result(*accuracy_of(scores.cpu(), wanted, dataset))


class LayerKNN(KNN):
    """k-NN on the features of every block, pooled after the encoder's final norm (SDSSL, arXiv 2111.12958).

    ``top1`` is the last block's; ``top1_block_1`` and on are those of all. Arguments as :class:`KNN`.
    """

    head = "k-NN by layer"

    def run(self, subject: Subject) -> Result:
        (banks, labels), (tests, wanted) = (self._features(subject, name) for name in ("train", "val"))
        dataset, classes = subject.dataset("val"), len(subject.dataset("val").classes)
        last: dict[str, float] = {}
        every: dict[str, float] = {}
        arrays = None
        for block, (bank, test) in enumerate(zip(banks, tests, strict=True), start=1):
            bank, test = (F.normalize(part, dim=1).to(subject.device) for part in (bank, test))
            votes = knn_votes(bank, labels.to(bank.device), test, classes, self.k, self.temperature)
            last, arrays = accuracy_of(votes.cpu(), wanted, dataset)
            every[f"top1_block_{block}"] = last["top1"]
            subject.log(f"block {block} of {len(banks)}: {last['top1']:.2f}")
        return Result({**last, **every}, arrays, {"layers": _curve(list(every.values()))})

    @torch.no_grad()
    def _features(self, subject: Subject, name: str) -> tuple[Tensor, Tensor]:
        """``(blocks, N, D)`` float32 and labels ``(N,)``, on the CPU."""
        model = subject.model
        encoder, prefix = model.backbone, model.backbone.num_prefix_tokens
        features, labels = [], []
        for images, samples in subject.batches(name):
            tokens = block_tokens(encoder, images)
            features.append(torch.stack([pool_tokens(one, prefix, model.global_pool) for one in tokens]).float().cpu())
            labels.append(samples["label"])
        found = torch.cat(features, dim=1)
        if not bool(torch.isfinite(found).all()):
            raise UserError(f"{name}: the encoder's features are not finite.")
        return found, torch.cat(labels)


def _curve(accuracies: list[float]) -> Any:
    """Accuracy over blocks."""
    from adpe.viz.figures import panels

    figure, ((axis,),) = panels(1, 1, 5, 3.2, "k-NN top-1 by block")
    axis.plot(range(1, len(accuracies) + 1), accuracies, marker="o")
    axis.set_xlabel("block")
    axis.set_ylabel("top-1, %")
    return figure


def knn_votes(
    train: Tensor, train_labels: Tensor, test: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes ``(M, classes)`` of the k most similar training images, each ``exp(similarity / temperature)``.

    Args:
        train: ``(N, D)`` features of unit length.
        train_labels: ``(N,)`` int64, below `classes`.
        test: ``(M, D)`` features of unit length.
        classes: how many there are.
        k: neighbours; at most N.
        temperature: of the votes.

    Raises:
        ValueError: if k exceeds the number of training images.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k={k} with {len(train)} training images: expected 1 <= k <= {len(train)}.")
    votes = torch.zeros(len(test), classes, device=test.device)
    for chunk, part in zip(test.split(1024), votes.split(1024), strict=True):
        similarity, nearest = (chunk @ train.T).topk(k, dim=1)
        part.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
    return votes
