"""Robustness of a linear head on a frozen encoder to poisoned training images, and blocking at test time.

A measurement of how far poisons steer a head, and how much a defence repairs (arXiv 2206.08477). The defence asks by
gradient attention rollout where a prediction came from, blacks out a window there, and predicts again. The reference's
defects are options, so that its numbers can be compared; the corrected forms are the defaults.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.models.layers import Block
from adpe.models.vit import VisionTransformer

Pairing = Literal["greedy", "reference"]
EpsSpace = Literal["pixel", "normalised"]
Rollout = Literal["matched", "reference"]


class ClassTokenClassifier(nn.Module):
    """A linear head on the class token after the final norm.

    Args:
        encoder: with a class token and absolute positions, no windows.
        head: linear.
    """

    def __init__(self, encoder: VisionTransformer, head: nn.Linear) -> None:
        super().__init__()
        if not encoder.num_prefix_tokens or encoder.needs_grid or encoder.relative:
            raise UserError("the rollout needs an encoder with a class token, absolute positions and no windows.")
        self.encoder, self.head = encoder, head

    def features(self, images: Tensor) -> Tensor:
        """``(B, D)`` of normalised images."""
        return self.encoder.forward_features(images)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        return self.head(self.features(images))

    def opened(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits ``(B, C)``, and of every block the attention before and after its softmax, ``(B, H, N, N)``."""
        encoder = self.encoder
        x, _ = encoder.embed(images)
        before, after = [], []
        for block in encoder.blocks:
            assert isinstance(block, Block)
            attention = block.attn
            heads = (3, attention.num_heads, x.shape[-1] // attention.num_heads)
            query, key, value = attention.qkv(block.norm1(x)).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
            logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            weights = logits.softmax(dim=-1)
            x = x + block.ls1(attention.proj((weights @ value).transpose(1, 2).flatten(2)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
            before.append(logits)
            after.append(weights)
        return self.head(encoder.norm(x)[:, 0]), before, after


# Poisoned images ------------------------------------------------------------------------------------------------------


def paste(images: Tensor, trigger: Tensor, positions: Tensor) -> Tensor:
    """Copies of ``(B, 3, H, W)`` with a trigger ``(3, t, t)`` at ``(x, y)`` of each, ``(B, 2)``.

    Raises:
        UserError: for a trigger that does not fit.
    """
    side = trigger.shape[-1]
    if min(images.shape[-2:]) < side:
        raise UserError(f"a trigger of {side} pixels on images of {images.shape[-2]} x {images.shape[-1]}.")
    patched = images.clone()
    for image, (x, y) in zip(patched, positions.long().tolist(), strict=True):
        image[:, y : y + side, x : x + side] = trigger
    return patched


def draw_positions(count: int, size: int, trigger: int, fixed: bool, generator: torch.Generator) -> Tensor:
    """Places ``(count, 2)`` of a trigger: the fixed corner, or uniform ones that use the last possible place too."""
    if fixed:
        return torch.full((count, 2), size - trigger - 5)
    return torch.randint(size - trigger + 1, (count, 2), generator=generator)


def pair(source: Tensor, targets: Tensor, rule: Pairing = "greedy") -> Tensor:
    """The index ``(n,)`` of the source features ``(n, D)`` that each of the target features ``(n, D)`` is drawn to.

    "greedy" takes the nearest pair, then the nearest of the rest. "reference" marks an entry of the table of distances
    as used and not its row and column, so that targets may be hit twice or never; of equal entries it reads the first
    two as a list of sources and a list of targets.
    """
    distances = torch.cdist(source, targets)
    chosen = torch.arange(len(targets), device=source.device)
    for _ in range(len(targets)):
        hits = (distances == distances.min()).nonzero()
        if rule == "greedy":
            row, column = hits[0]
            chosen[column] = row
            distances[row], distances[:, column] = torch.inf, torch.inf
        elif len(hits) == 1:
            row, column = hits[0]
            chosen[column] = row
            distances[row, column] = torch.inf
        else:
            rows, columns = hits[0], hits[1]
            chosen[columns] = rows
            distances[rows, columns] = torch.inf
    return chosen


class PoisonStep(NamedTuple):
    """One step of the optimisation.

    Attributes:
        target_features: ``(n, D)`` before the step.
        assigned: ``(n, D)`` features that each is drawn to.
        losses: ``(n,)`` squared distances.
        gradient: ``(n, 3, H, W)`` of their sum.
        perturbation: ``(n, 3, H, W)`` after the step, normalised.
        images: ``(n, 3, H, W)`` in [0, 1].
    """

    target_features: Tensor
    assigned: Tensor
    losses: Tensor
    gradient: Tensor
    perturbation: Tensor
    images: Tensor


class PoisonMaker:
    """Images of the target class whose features approach those of patched source images.

    Args:
        model: whose features are compared.
        mean: ``(3, 1, 1)`` of the channels.
        std: likewise.
        eps: largest change of a pixel.
        eps_space: of pixels in [0, 1], or of "normalised" ones (reference: three to four times less).
        lr: rate; halved every `halved` iterations.
        halved: iterations.
        pairing: see :func:`pair`. With "reference" the sources that were not chosen are lost, as there.
    """

    def __init__(
        self,
        model: ClassTokenClassifier,
        mean: Tensor,
        std: Tensor,
        eps: float = 16 / 255,
        eps_space: EpsSpace = "pixel",
        lr: float = 0.001,
        halved: int = 1000,
        pairing: Pairing = "greedy",
    ) -> None:
        self.model, self.mean, self.std, self.lr, self.halved = model, mean, std, lr, halved
        self.bound = eps / std if eps_space == "pixel" else torch.full_like(std, eps)
        self.pairing: Pairing = pairing

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration."""
        return self.lr * 0.5 ** (iteration // self.halved)

    def step(self, source: Tensor, targets: Tensor, perturbation: Tensor, iteration: int) -> PoisonStep:
        """One step for features ``(n, D)`` of patched sources and normalised target images ``(n, 3, H, W)``."""
        moved = perturbation.detach().requires_grad_()
        features = self.model.features(targets + moved)
        assigned = source[pair(source, features.detach(), self.pairing)]
        losses = (assigned - features).square().sum(dim=1)
        (gradient,) = torch.autograd.grad(losses.sum(), moved)
        stepped = (perturbation - self.rate(iteration) * gradient).clamp(-self.bound, self.bound)
        images = ((targets + stepped) * self.std + self.mean).clamp(0, 1)
        after = (images - self.mean) / self.std - targets
        return PoisonStep(features.detach(), assigned, losses.detach(), gradient, after, images)

    def make(self, sources: Tensor, targets: Tensor, iterations: int, stop: float = 0.0) -> tuple[Tensor, Tensor]:
        """Poisons as bytes ``(n, 3, H, W)`` and their losses ``(n,)``.

        Args:
            sources: patched source images, normalised.
            targets: as many images of the target class, normalised.
            iterations: at most.
            stop: largest loss of the batch below which to stop; 15 for 768 channels in the reference.

        Raises:
            UserError: for no iteration.
        """
        if iterations < 1:
            raise UserError(f"poisons: iterations = {iterations}, expected at least 1.")
        with torch.no_grad():
            features = self.model.features(sources)
        perturbation = torch.zeros_like(targets)
        for iteration in range(iterations):
            found = self.step(features, targets, perturbation, iteration)
            perturbation = found.perturbation
            if self.pairing == "reference":
                features = found.assigned
            if float(found.losses.max()) < stop:
                break
        return (255 * found.images).to(torch.uint8), found.losses


# The defence ----------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Where an image is blacked out, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


def rollout_maps(
    model: ClassTokenClassifier, images: Tensor, rule: Rollout = "matched", discard_ratio: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Gradient attention rollout of the predicted class: maps ``(B, h, w)`` and logits ``(B, C)``.

    "matched" multiplies every block's attention by the gradient at it and divides rows by their sums. "reference"
    multiplies it by the gradient at the logits before the softmax of the block as far from the end as this is from the
    beginning, and divides column j by the sum of row j. A map that is 0 everywhere stays so.
    """
    logits, before, after = model.opened(images)
    predicted = logits.argmax(dim=-1)
    wanted = after if rule == "matched" else before
    gradients = torch.autograd.grad(logits.gather(1, predicted[:, None]).sum(), wanted)
    if rule == "reference":
        gradients = gradients[::-1]
    count = after[0].shape[-1]
    identity = torch.eye(count, device=images.device)
    rolled = identity.expand(len(images), -1, -1)
    for weights, gradient in zip(after, gradients, strict=True):
        mixed = (weights.detach() * gradient).mean(dim=1).clamp(min=0).flatten(1)
        least = mixed.topk(int(mixed.shape[1] * discard_ratio), dim=1, largest=False).indices
        mixed = (mixed.scatter(1, least, 0.0).view(-1, count, count) + identity) / 2
        sums = mixed.sum(dim=-1)
        mixed = mixed / (sums.unsqueeze(1) if rule == "reference" else sums.unsqueeze(2))
        rolled = mixed @ rolled
    prefix = model.encoder.num_prefix_tokens
    grid = model.encoder.patch_embed.grid(images)
    maps = rolled[:, 0, prefix:].unflatten(1, grid)
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12), logits.detach()


def box_sums(maps: Tensor, size: tuple[int, int], edge: int) -> tuple[Tensor, Tensor]:
    """Maps ``(B, h, w)`` at the image's size, and their sums in boxes of side ``edge + 1``; both ``(B, H, W)``."""
    large = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)
    kernel = torch.ones(1, 1, edge + 1, edge + 1, device=maps.device)
    return large[:, 0], F.conv2d(large, kernel, padding=edge // 2)[:, 0]


def blocking_window(sums: Tensor, edge: int) -> Window:
    """The window of `edge` pixels around the largest of the sums ``(H, W)``, of equal ones the first, inside the image.

    Raises:
        UserError: for a window larger than the image.
    """
    height, width = sums.shape
    if edge > min(height, width):
        raise UserError(f"a window of {edge} pixels on images of {height} x {width}.")
    place = int(sums.flatten().argmax())

    def span(centre: int, length: int) -> tuple[int, int]:
        low = centre - edge / 2
        if low < 0:
            return 0, edge
        if centre + edge / 2 > length:
            return length - edge, length
        return int(low), int(low) + edge

    return Window(*span(place // width, height), *span(place % width, width))


def block(images: Tensor, windows: list[Window]) -> Tensor:
    """Copies of images ``(B, 3, H, W)`` in [0, 1], black in their windows."""
    blocked = images.clone()
    for image, window in zip(blocked, windows, strict=True):
        image[:, window.top : window.bottom, window.left : window.right] = 0
    return blocked


class Defended(NamedTuple):
    """What the defence did.

    Attributes:
        logits: ``(B, C)`` before.
        maps: ``(B, h, w)``.
        windows: of every image.
        blocked_images: ``(B, 3, H, W)`` in [0, 1].
        blocked_logits: ``(B, C)`` after.
    """

    logits: Tensor
    maps: Tensor
    windows: list[Window]
    blocked_images: Tensor
    blocked_logits: Tensor


def defend(
    model: ClassTokenClassifier, images: Tensor, mean: Tensor, std: Tensor, edge: int, rule: Rollout = "matched",
    discard_ratio: float = 0.9,
) -> Defended:  # fmt: skip
    """Predict, find the window, black it out, and predict again.

    Args:
        model: in evaluation mode.
        images: ``(B, 3, H, W)`` normalised.
        mean: ``(3, 1, 1)`` of the channels.
        std: likewise.
        edge: side of the window in pixels, even.
        rule: see :func:`rollout_maps`.
        discard_ratio: share of the entries of a block's map that are set to 0.
    """
    maps, logits = rollout_maps(model, images, rule, discard_ratio)
    _, sums = box_sums(maps, (images.shape[-2], images.shape[-1]), edge)
    windows = [blocking_window(one, edge) for one in sums]
    blocked = block((images * std + mean).clamp(0, 1), windows)
    with torch.no_grad():
        return Defended(logits, maps, windows, blocked, model((blocked - mean) / std))


def trigger_hit(windows: list[Window], positions: Tensor, trigger: int) -> float:
    """Mean share of the trigger's pixels that lie inside the window."""
    shares = []
    for window, (x, y) in zip(windows, positions.long().tolist(), strict=True):
        rows = max(0, min(window.bottom, y + trigger) - max(window.top, y))
        columns = max(0, min(window.right, x + trigger) - max(window.left, x))
        shares.append(rows * columns / trigger**2)
    return sum(shares) / len(shares)
