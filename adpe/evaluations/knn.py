"""k-NN accuracy of frozen features: how good a representation is before anything is trained on it.

The protocol is that of InstDisc (arXiv 1805.01978) as DINO uses it (arXiv 2104.14294, sec. 4.1): cosine similarity to
the k nearest training images, votes weighted by ``exp(similarity / 0.07)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.models.vit import VisionTransformer

GlobalPool = Literal["avg", "token"]


def pool_tokens(tokens: Tensor, num_prefix_tokens: int, global_pool: GlobalPool = "avg") -> Tensor:
    """One vector ``(B, D)`` of tokens ``(B, N, D)``: the mean of the patches' ("avg") or the class token ("token").

    Raises:
        ValueError: for another word, or for the class token where there is none.
    """
    if global_pool not in get_args(GlobalPool) or (global_pool == "token" and not num_prefix_tokens):
        raise ValueError(f"global_pool must be avg, or token where there is a class token; got {global_pool!r}.")
    return tokens[:, 0] if global_pool == "token" else tokens[:, num_prefix_tokens:].mean(dim=1)


@torch.no_grad()
def features(encoder: VisionTransformer, batches: Iterable[Tensor], global_pool: GlobalPool = "avg") -> Tensor:
    """Pooled tokens after the final norm, ``(N, D)`` of unit length, from batches ``(B, 3, H, W)``."""
    encoder.eval()
    pooled = [
        pool_tokens(encoder.forward_features(images), encoder.num_prefix_tokens, global_pool).float().cpu()
        for images in batches
    ]
    return F.normalize(torch.cat(pooled), dim=1)


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


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Top-1 accuracy in percent; arguments as :func:`knn_votes`, and ``test_labels (M,)`` int64.

    Raises:
        ValueError: if k exceeds the number of training images, or there is nothing to test.
    """
    if len(test) == 0:
        raise ValueError("there are no test images.")
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    votes = knn_votes(train, train_labels, test, classes, k, temperature)
    return 100.0 * float((votes.argmax(dim=1) == test_labels).double().mean())


def spaced(count: int, limit: int | None) -> list[int]:
    """All of ``range(count)``, or `limit` of them evenly spaced."""
    return list(range(count)) if limit is None or limit >= count else [i * count // limit for i in range(limit)]
