"""Loss of mask classification: queries are matched to target masks, and compared at random points.

As Mask2Former (arXiv 2112.01527) has it; EoMT (arXiv 2503.19108) takes it over unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.transfer.eomt.network import Prediction


class Target(NamedTuple):
    """One image's masks ``(n, H, W)`` bool, one for each class that is there, and their classes ``(n,)`` int64.

    Points outside of `labelled` ``(H, W)`` bool do not count; with None, as published, they lie outside of all masks.
    """

    masks: Tensor
    labels: Tensor
    labelled: Tensor | None = None


class Points(NamedTuple):
    """Draws of one prediction's loss, in [0, 1), as ``(x, y)`` of an image.

    Attributes:
        match: ``(K, 2)`` for each image.
        candidates: ``(pairs, oversample K, 2)``.
        random: ``(pairs, K - certain, 2)``.
    """

    match: Sequence[Tensor]
    candidates: Tensor
    random: Tensor


class MaskCriterion(nn.Module):
    """Weighted losses of predictions; all are summed in training.

    Args:
        num_classes: C.
        num_points: K, where masks are compared.
        oversample_ratio: candidates are so many times K, of which the least certain are taken.
        importance_sample_ratio: share of K taken among the candidates; the others are uniform.
        no_object: weight of "no object" in the class loss.
        mask: weight of the masks' binary cross-entropy.
        dice: of the dice loss.
        classes: of the class loss.

    Raises:
        UserError: for numbers of points that leave nothing.
    """

    no_object: Tensor

    def __init__(
        self,
        num_classes: int,
        num_points: int = 12_544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        no_object: float = 0.1,
        mask: float = 5.0,
        dice: float = 5.0,
        classes: float = 2.0,
    ) -> None:
        super().__init__()
        if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise UserError(
                f"EoMT: num_points = {num_points}, oversample_ratio = {oversample_ratio}, importance_sample_ratio = "
                f"{importance_sample_ratio}: expected at least 1, at least 1, and 0 to 1."
            )
        self.num_classes, self.num_points = num_classes, num_points
        self.candidates = int(num_points * oversample_ratio)
        self.uncertain = int(num_points * importance_sample_ratio)
        self.weights = {"mask": mask, "dice": dice, "classes": classes}
        weight = torch.ones(num_classes + 1)
        weight[-1] = no_object
        self.register_buffer("no_object", weight, persistent=False)

    def forward(
        self, predictions: Sequence[Prediction], targets: Sequence[Target], points: Sequence[Points] | None = None
    ) -> list[dict[str, Tensor]]:
        """Losses "mask", "dice" and "classes" of every prediction, not yet weighted.

        Args:
            predictions: float32 for the result to be exact.
            targets: of the images.
            points: draws of every prediction; None draws.
        """
        given: Sequence[Points | None] = points or [None] * len(predictions)
        matches = self.match(predictions, targets, points)
        total = self._targets(targets, predictions[0].masks.device)
        return [
            self._losses(prediction, targets, match, total, drawn)
            for prediction, match, drawn in zip(predictions, matches, given, strict=True)
        ]

    def total(self, losses: Sequence[dict[str, Tensor]]) -> Tensor:
        """The weighted sum."""
        return torch.stack([self.weights[name] * value for part in losses for name, value in part.items()]).sum()

    @torch.no_grad()
    def match(
        self, predictions: Sequence[Prediction], targets: Sequence[Target], points: Sequence[Points] | None = None
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """For every prediction and image, matched queries and targets, in the order of the queries."""
        from scipy.optimize import linear_sum_assignment

        costs = [
            self._cost(prediction, image, target, points[number].match[image] if points else None)
            for number, prediction in enumerate(predictions)
            for image, target in enumerate(targets)
        ]
        # One transfer from the device for all.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        ends = np.cumsum([cost.numel() for cost in costs])[:-1]
        pairs = []
        for cost, values in zip(costs, np.split(flat, ends), strict=True):
            if not np.isfinite(values).all():
                raise UserError("EoMT: the matching costs are not finite: the training has diverged; lower lr.")
            rows, columns = linear_sum_assignment(values.reshape(cost.shape))
            pairs.append((torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)))
        images = len(targets)
        return [pairs[start : start + images] for start in range(0, len(pairs), images)]

    def _cost(self, prediction: Prediction, image: int, target: Target, drawn: Tensor | None) -> Tensor:
        """``(Q, n)``."""
        logits = prediction.masks[image].float()
        where = torch.rand(self.num_points, 2, device=logits.device) if drawn is None else drawn
        found = sample(logits, where.expand(len(logits), -1, -1))
        true = sample(target.masks.float(), where.expand(len(target.masks), -1, -1))
        if target.labelled is not None:
            counted = _counted(target.labelled, where[None])[0] > 0
            if bool(counted.any()):
                found, true = found[:, counted], true[:, counted]
        inside, outside = F.softplus(-found), F.softplus(found)  # losses for a target of 1, and of 0
        bce = (inside @ true.T + outside @ (1 - true).T) / found.shape[1]
        shares = found.sigmoid()
        dice = 1 - (2 * shares @ true.T + 1) / (shares.sum(1)[:, None] + true.sum(1) + 1)
        classes = -prediction.classes[image].float().softmax(-1)[:, target.labels]
        weights = self.weights
        return weights["mask"] * bce + weights["dice"] * dice + weights["classes"] * classes

    def _losses(
        self,
        prediction: Prediction,
        targets: Sequence[Target],
        match: Sequence[tuple[Tensor, Tensor]],
        total: Tensor,
        drawn: Points | None,
    ) -> dict[str, Tensor]:
        logits = torch.cat([masks[rows] for masks, (rows, _) in zip(prediction.masks.float(), match, strict=True)])
        where = self._points(logits.detach(), drawn)
        of = where.split([len(rows) for rows, _ in match])
        true = torch.cat([
            sample(target.masks[columns].float(), points)
            for target, (_, columns), points in zip(targets, match, of, strict=True)
        ])  # fmt: skip
        found = sample(logits, where)
        bce = F.binary_cross_entropy_with_logits(found, true, reduction="none")
        shares = found.sigmoid()
        if any(target.labelled is not None for target in targets):
            counted = torch.cat([
                torch.ones_like(points[..., 0]) if target.labelled is None else _counted(target.labelled, points)
                for target, points in zip(targets, of, strict=True)
            ])  # fmt: skip
            bce = bce * counted * (counted.shape[1] / counted.sum(1, keepdim=True).clamp(min=1))
            shares, true = shares * counted, true * counted
        bce = bce.mean(1).sum() / total
        dice = 1 - (2 * (shares * true).sum(1) + 1) / (shares.sum(1) + true.sum(1) + 1)
        classes = prediction.classes.float()
        wanted = torch.full(classes.shape[:2], self.num_classes, device=classes.device)
        for image, (rows, columns) in enumerate(match):
            wanted[image, rows] = targets[image].labels[columns]
        ce = F.cross_entropy(classes.transpose(1, 2), wanted, weight=self.no_object)
        return {"mask": bce, "dice": dice.sum() / total, "classes": ce}

    @torch.no_grad()
    def _points(self, logits: Tensor, drawn: Points | None) -> Tensor:
        """``(pairs, K, 2)``: the least certain of the candidates, then uniform ones."""
        pairs, device = len(logits), logits.device
        candidates = torch.rand(pairs, self.candidates, 2, device=device) if drawn is None else drawn.candidates
        rest = self.num_points - self.uncertain
        random = torch.rand(pairs, rest, 2, device=device) if drawn is None else drawn.random
        chosen = sample(logits, candidates).abs().topk(self.uncertain, dim=1, largest=False).indices
        return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), random], dim=1)

    @staticmethod
    def _targets(targets: Sequence[Target], device: torch.device) -> Tensor:
        """Target masks of the batch: mean over processes, at least 1."""
        count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count /= dist.get_world_size()
        return count.clamp(min=1)


def _counted(labelled: Tensor, points: Tensor) -> Tensor:
    """1 where points ``(M, K, 2)`` lie on labelled pixels of ``(H, W)``, else 0: ``(M, K)`` float32."""
    return (sample(labelled[None].float().expand(len(points), -1, -1), points) > 0.5).float()


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values ``(M, K)`` of maps ``(M, H, W)`` at points ``(M, K, 2)``, (x, y) in [0, 1]; zeros outside.

    The centre of pixel i lies at ``(i + 0.5) / W``.
    """
    if not len(maps):
        return maps.new_zeros(0, points.shape[1])
    grid = (2 * points - 1).unsqueeze(2)
    return F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]
