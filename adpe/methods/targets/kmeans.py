"""k-means of feature vectors, for parts of images and for tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_centroid(x: Tensor, centroids: Tensor, chunk: int = 16_384) -> Tensor:
    """``(N,)`` index of the nearest of ``(K, D)`` centroids by squared Euclidean distance, of equal ones the first."""
    own = centroids.square().sum(dim=1)
    return torch.cat([(own - 2 * part @ centroids.T).argmin(dim=1) for part in x.split(chunk)])


@torch.no_grad()
def kmeans(x: Tensor, start: Tensor, iterations: int = 20) -> Tensor:
    """Lloyd's iterations: ``(K, D)`` centroids of ``(N, D)`` points.

    A cluster that loses all its points restarts from the point farthest from its centroid.

    Args:
        x: points.
        start: ``(K, D)``.
        iterations: how many.

    Raises:
        ValueError: for fewer points than centroids, or points that are not finite.
    """
    if len(x) < len(start):
        raise ValueError(f"k-means: {len(x)} points for {len(start)} centroids.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("k-means: the features are not finite.")
    centroids = start.clone()
    for _ in range(iterations):
        labels = nearest_centroid(x, centroids)
        counts = torch.bincount(labels, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, labels, x)
        moved = sums / counts.clamp(min=1).unsqueeze(1).to(x.dtype)
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            distance = (x - centroids[labels]).square().sum(dim=1)
            moved[empty] = x[distance.topk(len(empty)).indices]
        centroids = moved
    return centroids


def squared_error(x: Tensor, centroids: Tensor) -> float:
    """Sum of the squared distances of ``(N, D)`` points to their nearest centroid."""
    return float((x - centroids[nearest_centroid(x, centroids)]).square().sum(dtype=torch.float64))


def random_points(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different points of ``(N, D)``, the start of :func:`kmeans`."""
    return x[torch.randperm(len(x), generator=generator)[:count].to(x.device)].clone()
