"""Segmentation from patch features without training a network: k-NN and logistic regression (CAPI, arXiv 2502.08769).

Images and label maps are squashed to one size, a patch is a feature, and everything is counted on the labels of that
size. k-NN copies the labels of all pixels of the nearest patches; regression gives a patch one class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError

Distance = Literal["cosine", "L2"]

# Bank patches that are searched at once, and queries; the result depends on neither.
BANK_CHUNK, QUERY_CHUNK = 262_144, 1024
_NEWTON = 5000  # coefficients


def patch_labels(labels: Tensor, patch_size: int) -> Tensor:
    """Label maps ``(N, H, W)`` to the labels of every patch's pixels, row by row: ``(N * h * w, p * p)``."""
    count, height, width = labels.shape
    if height % patch_size or width % patch_size:
        raise UserError(f"label maps of {height} x {width} pixels are not divisible by patches of {patch_size}.")
    x = labels.reshape(count, height // patch_size, patch_size, width // patch_size, patch_size)
    return x.transpose(2, 3).reshape(-1, patch_size**2)


def most_frequent(labels: Tensor, chunk: int = 65_536) -> Tensor:
    """The most frequent value of every row of ``(M, n)`` integers from 0 on; of equally frequent ones the smallest."""
    found = []
    for part in labels.long().split(chunk):
        values = int(part.max()) + 1 if part.numel() else 1
        counts = torch.zeros(len(part), values, dtype=torch.int32, device=part.device)
        counts.scatter_add_(1, part, torch.ones_like(part, dtype=torch.int32))
        found.append(counts.argmax(dim=1))  # the first of equal ones
    return torch.cat(found)


class Standardisation(NamedTuple):
    """Mean and scale ``(D,)`` of channels, in double precision, with which features are standardised."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardisation:
        """Of ``(M, D)`` features; the divisor of the variance is M. A constant channel has scale 1."""
        parts = features.split(BANK_CHUNK)  # so many in double precision at once
        mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / len(features)
        squares = torch.stack([(part.double() - mean).square().sum(dim=0) for part in parts]).sum(dim=0)
        scale = (squares / len(features)).sqrt()
        return cls(mean, torch.where(scale > 0, scale, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardised ``(..., D)`` float32."""
        rows = features.reshape(-1, features.shape[-1]).split(BANK_CHUNK)
        return torch.cat([((part.double() - self.mean) / self.scale).float() for part in rows]).view(features.shape)


def split_images(count: int, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation images: the first ``count // 10`` of a permutation validate.

    Raises:
        UserError: for fewer than ten images.
    """
    validating = count // 10
    if validating < 1:
        raise UserError(
            f"{count} training images: at least 10 are needed, a tenth of which validate the choice of k or C."
        )
    return permutation[validating:], permutation[:validating]


def is_kept(majority: Tensor, ignore_labels: Sequence[int]) -> Tensor:
    """Which patches ``(M,)`` train: those whose majority label is not ignored."""
    return ~torch.isin(majority, torch.as_tensor(list(ignore_labels), device=majority.device, dtype=majority.dtype))


def nearest(
    queries: Tensor,
    bank: Tensor,
    k: int,
    distance: Distance,
    chunk: int = BANK_CHUNK,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Indices ``(M, k)`` of the nearest of ``(N, D)`` bank patches to ``(M, D)`` queries, the nearest first.

    The bank may lie on another device than the queries, whose is the result's: chunks of it are brought there.

    Raises:
        UserError: for a k above N, or another distance.
    """
    if not 1 <= k <= len(bank):
        raise UserError(f"k = {k} with {len(bank)} training patches: expected 1 to {len(bank)}.")
    if distance not in ("cosine", "L2"):
        raise UserError(f"distance = {distance!r} is none of cosine, L2.")
    cosine = distance == "cosine"
    if cosine:
        queries = F.normalize(queries, dim=1)
    parts = queries.to(dtype).split(QUERY_CHUNK)
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
    for start in range(0, len(bank), chunk):
        block = bank[start : start + chunk].to(queries.device)
        block = (F.normalize(block, dim=1) if cosine else block).to(dtype)
        lengths = 0 if cosine else block.square().sum(dim=1)
        for number, part in enumerate(parts):
            # The query's own length orders nothing.
            closeness = part @ block.T if cosine else 2 * (part @ block.T) - lengths
            values, places = closeness.topk(min(k, len(block)), dim=1)
            places += start
            known = best[number]
            if known is not None:
                values, places = torch.cat([known[0], values], dim=1), torch.cat([known[1], places], dim=1)
                values, order = values.topk(min(k, values.shape[1]), dim=1)
                places = places.gather(1, order)
            best[number] = values, places
    return torch.cat([found[1] for found in best if found is not None]) if parts else torch.empty(0, k)


def vote(labels: Tensor, neighbours: Tensor, never: Sequence[int] = ()) -> Tensor:
    """At each place the most frequent label ``(M, p * p)`` of neighbours' pixels.

    Args:
        labels: ``(N, p * p)`` of the bank's pixels.
        neighbours: ``(M, k)`` of the bank.
        never: labels that are not predicted where another is there; the reference predicts ignored ones too.
    """
    ignored, last = {*never}, int(labels.max()) + 1
    found = []
    for places in neighbours.to(labels.device).split(QUERY_CHUNK):
        chosen = labels[places].long()  # (m, k, p * p)
        rows = chosen.transpose(1, 2).reshape(-1, places.shape[1])
        winner = most_frequent(rows)
        if ignored:
            counted = torch.where(is_kept(rows, never), rows, last)
            other = most_frequent_but(counted, last)
            winner = torch.where(other == last, winner, other)
        found.append(winner.view(len(places), -1))
    return torch.cat(found)


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    k: int,
    distance: Distance,
    never: Sequence[int] = (),
    chunk: int = BANK_CHUNK,
) -> Tensor:
    """Labels ``(M, p * p)`` of the queries' pixels: :func:`vote` of the `k` :func:`nearest` patches."""
    return vote(labels, nearest(queries, bank, k, distance, chunk), never)


def most_frequent_but(labels: Tensor, but: int, chunk: int = 65_536) -> Tensor:
    """As `most_frequent`, never `but` where a row has another value."""
    found = []
    for part in labels.split(chunk):
        counts = torch.zeros(len(part), but + 1, dtype=torch.int32, device=part.device)
        counts.scatter_add_(1, part, torch.ones_like(part, dtype=torch.int32))
        counts[:, but] = (counts[:, but] > 0) * (counts[:, :but].sum(dim=1) == 0)
        found.append(counts.argmax(dim=1))
    return torch.cat(found)


class Logistic(NamedTuple):
    """A fitted multinomial regression.

    Attributes:
        coefficient: ``(classes, D)`` float64.
        intercept: ``(classes,)``.
        classes: ``(classes,)`` labels.
    """

    coefficient: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray

    def scores(self, features: Tensor) -> Tensor:
        """Logits ``(M, classes)`` float64 of features ``(M, D)``, on the CPU."""
        return torch.from_numpy(features.double().cpu().numpy() @ self.coefficient.T + self.intercept)

    def predict(self, features: Tensor) -> Tensor:
        """The label ``(M,)`` of every patch ``(M, D)``."""
        return torch.from_numpy(self.classes)[self.scores(features).argmax(dim=1)]


def fit_logistic(features: Tensor, labels: Tensor, c: float, iterations: int = 20_000) -> Logistic:
    """Minimise ``sum of cross-entropies + ||w||^2 / (2 c)``, the intercept free, to the optimum.

    By scikit-learn on the CPU, by L-BFGS in double precision on another device. The reference stops after 1,000
    iterations, which at a large c may be before the optimum.

    Args:
        features: ``(M, D)``; their device computes.
        labels: ``(M,)``, at least two different.
        c: inverse strength of the penalty.
        iterations: at most.

    Raises:
        UserError: for one label alone.
    """
    classes, numbers = labels.to(features.device).unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"logistic regression: all {len(labels)} training patches have one label.")
    if features.device.type != "cpu":
        return fit_by_lbfgs(features, classes, numbers, c, iterations)
    from sklearn.linear_model import LogisticRegression

    # Newton's method takes a few steps, with a matrix of all coefficients.
    solver = "newton-cholesky" if len(classes) * (features.shape[1] + 1) <= _NEWTON else "lbfgs"
    model = LogisticRegression(C=c, tol=1e-10, max_iter=iterations, solver=solver)
    model.fit(features.double().numpy(), labels.cpu().numpy())
    coefficient, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row stands for both
        coefficient, intercept = np.stack([-coefficient[0], coefficient[0]]) / 2, np.array([-1, 1]) * intercept[0] / 2
    return Logistic(coefficient, intercept, model.classes_)


def fit_by_lbfgs(features: Tensor, classes: Tensor, numbers: Tensor, c: float, iterations: int) -> Logistic:
    """:func:`fit_logistic` by torch's L-BFGS, on the device of the features, in chunks of them.

    Args:
        features: ``(M, D)``.
        classes: ``(K,)`` labels.
        numbers: ``(M,)`` indices into `classes`.
        c: see :func:`fit_logistic`.
        iterations: at most.
    """
    shape = len(classes), features.shape[1] + 1
    # A strong penalty would make the coefficients' curvature far larger than the intercepts'.
    unit = min(1.0, math.sqrt(c * len(features)))
    weights = torch.zeros(shape, dtype=torch.float64, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, max_eval=4 * iterations, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-11, tolerance_change=1e-18,
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        # Per patch, so that the tolerance does not depend on how many there are.
        penalty = (unit * weights[:, :-1]).square().sum() / (2 * c * len(features))
        penalty.backward()
        total = penalty.detach()
        for part, wanted in zip(features.split(BANK_CHUNK), numbers.split(BANK_CHUNK), strict=True):
            scores = part.double() @ (unit * weights[:, :-1]).T + weights[:, -1]
            loss = F.cross_entropy(scores, wanted, reduction="sum") / len(features)
            loss.backward()
            total = total + loss.detach()
        return total

    optimizer.step(objective)
    found = weights.detach().cpu().numpy()
    return Logistic(unit * found[:, :-1], found[:, -1] - found[:, -1].mean(), classes.cpu().numpy())


def pixel_scores(labels: Tensor, prediction: Tensor, ignore_labels: Sequence[int]) -> tuple[float, float]:
    """mIoU and share of right pixels, in [0, 1], over pixels whose label is not ignored.

    The classes are the labels found there in the ground truth or in the prediction, so that a predicted label without
    ground truth counts with IoU 0.

    Raises:
        UserError: if all pixels are ignored.
    """
    valid = is_kept(labels.flatten(), ignore_labels)
    true, found = labels.flatten()[valid].long(), prediction.flatten().to(labels.device)[valid].long()
    if not len(true):
        raise UserError("all pixels of the ground truth are ignored.")
    size = int(max(true.max(), found.max())) + 1
    confusion = torch.bincount(true * size + found, minlength=size * size).view(size, size).double()
    both, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    there = union > 0
    return float((both[there] / union[there]).mean()), float(both.sum() / len(true))
