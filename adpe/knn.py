"""k-NN accuracy of frozen features: how good a representation is before anything is trained on it.

The protocol is that of InstDisc (arXiv 1805.01978) as DINO uses it (arXiv 2104.14294, sec. 4.1): cosine similarity to
the k nearest training images, votes weighted by ``exp(similarity / 0.07)``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.vit import VisionTransformer


@torch.no_grad()
def features(encoder: VisionTransformer, batches: Iterable[Tensor]) -> Tensor:
    """Mean of the patch tokens after the final norm, ``(N, D)`` of unit length, from batches ``(B, 3, H, W)``."""
    encoder.eval()
    pooled = [encoder.forward_features(images)[:, 1:].mean(dim=1).float().cpu() for images in batches]
    return F.normalize(torch.cat(pooled), dim=1)


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Top-1 accuracy in percent.

    Args:
        train: ``(N, D)`` features of unit length.
        train_labels: ``(N,)`` int64.
        test: ``(M, D)`` features of unit length.
        test_labels: ``(M,)`` int64.
        k: neighbours; at most N.
        temperature: of the votes.

    Raises:
        ValueError: if k exceeds the number of training images, or there is nothing to test.
    """
    if not 1 <= k <= len(train) or len(test) == 0:
        raise ValueError(f"k={k} with {len(train)} training and {len(test)} test images: expected 1 <= k <= training.")
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    correct = 0
    for chunk, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, nearest = (chunk @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        correct += int((votes.argmax(dim=1) == labels).sum())
    return 100.0 * correct / len(test)
