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
from adpe.evaluations.accuracy import accuracy_of
from adpe.evaluations.base import Evaluation, Result, Subject


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
