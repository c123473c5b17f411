"""Triggers of a backdoor: drawn, pasted into images of a data set, and shown with what a defence blacks out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.backdoor.attacks import draw_positions, paste

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Patch:
    """Pastes the trigger into normalised images, and remembers where, ``(n, 2)``."""

    def __init__(self, trigger: Tensor, fixed: bool, generator: torch.Generator) -> None:
        self.trigger, self.fixed, self.generator = trigger, fixed, generator
        self.positions = torch.empty(0, 2, dtype=torch.long)

    def __call__(self, images: Tensor) -> Tensor:
        side, size = self.trigger.shape[-1], min(images.shape[-2:])
        if size - side - 5 < 0:
            raise UserError(f"evaluation: trigger={side} on images of {size} pixels: expected at most {size - 5}.")
        self.positions = draw_positions(len(images), size, side, self.fixed, self.generator)
        return paste(images, self.trigger, self.positions)


def draw_trigger(side: int, generator: torch.Generator) -> Tensor:
    """``(3, side, side)`` in [0, 1]: 4 x 4 blocks of pure colours."""
    blocks = torch.randint(2, (1, 3, 4, 4), generator=generator).float()
    return F.interpolate(blocks, size=(side, side), mode="nearest")[0]


def normalisation_of(dataset: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``(3, 1, 1)`` by which a data set's transform normalises.

    Raises:
        UserError: if it does not.
    """
    for one in reversed(getattr(dataset.transform, "transforms", [])):
        if hasattr(one, "mean") and hasattr(one, "std"):
            return tuple(torch.as_tensor(v, device=device).view(3, 1, 1) for v in (one.mean, one.std))  # type: ignore[return-value]
    raise UserError("evaluation: the data's transform normalises no pixels, so that they cannot be blocked.")


def images_of(dataset: Any, indices: list[int]) -> Tensor:
    """Normalised images ``(n, 3, H, W)``."""
    return torch.stack([dataset[index]["inputs"] for index in indices])


def draw_defence(patched: Tensor, maps: Tensor, blocked: Tensor, title: str) -> Figure:
    """Patched images ``(n, 3, H, W)`` in [0, 1], maps ``(n, h, w)`` and blocked images, a column each."""
    from adpe.viz.figures import draw_images

    large = F.interpolate(maps[:, None].detach(), size=patched.shape[-2:], mode="bilinear", align_corners=False)
    return draw_images({"with trigger": patched, "rollout": large.expand_as(patched), "blocked": blocked}, title)
