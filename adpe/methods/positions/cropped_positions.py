"""MAE+ on cropped positions (RO-ViT, arXiv 2305.07011): a control that changes positions without an adversary.

RO-ViT takes a crop of an image's positions for those of the whole image, so that a position means less. Its contrastive
training on image and text is not here: the positions alone are, in MAE+. AdPE moves hidden patches; this moves all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.methods.mae_plus import MAEPlus
from adpe.methods.masks.masking import Mask
from adpe.models.vit import VisionTransformer

# Cells along a side of the table that is cropped (section 3 of the paper: 14 to 64).
SIDE = 64


class CroppedPositions(MAEPlus):
    """MAE+ whose patches have, in training, the positions of a random region of the grid, one an image.

    Args:
        encoder: a :class:`VisionTransformer` without classes, with absolute positions.
        crop_scale: range of the region's share of the grid's area, uniform.
        crop_ratio: range of its width over its height, log-uniform; what would not fit is cut to the grid.
        options: of :class:`MAEPlus`.

    Raises:
        ValueError: for relative positions, or ranges that cannot be.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        crop_scale: Sequence[float] = (0.1, 1.0),
        crop_ratio: Sequence[float] = (0.5, 2.0),
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        if encoder.position != "absolute":
            raise ValueError(f"CroppedPositions needs position='absolute', got {encoder.position!r}.")
        if not (len(crop_scale) == 2 and 0 < crop_scale[0] <= crop_scale[1] <= 1):
            raise ValueError(f"crop_scale={crop_scale} must be (smallest, largest) within 0..1.")
        if not (len(crop_ratio) == 2 and 0 < crop_ratio[0] <= crop_ratio[1]):
            raise ValueError(f"crop_ratio={crop_ratio} must be (smallest, largest) and positive.")
        self.crop_scale, self.crop_ratio = tuple(crop_scale), tuple(crop_ratio)

    def patch_positions(self, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        if not self.training:
            return positions
        boxes = self.draw_boxes(len(mask.hidden), positions.device)
        return crop_positions(positions, boxes, grid).to(positions.dtype)

    def draw_boxes(self, count: int, device: torch.device) -> Tensor:
        """``(count, 4)`` regions, (left, top, width, height) as shares of the grid."""
        draws = torch.rand(4, count, device=device)
        low, high = self.crop_scale
        area = low + (high - low) * draws[0]
        first, last = (math.log(value) for value in self.crop_ratio)
        ratio = (first + (last - first) * draws[1]).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        return torch.stack([(1 - width) * draws[2], (1 - height) * draws[3], width, height], dim=1)

    @property
    def title(self) -> str:
        return "MAE+ cropped positions"


def crop_positions(positions: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions ``(B, L, D)`` of regions ``(B, 4)`` from the table ``(1, L, D)`` of a grid ``(h, w)``.

    The table is resized to `SIDE` cells a side, the region is cut out and resized to the grid, both bilinearly; the
    region of the whole grid, (0, 0, 1, 1), gives the table back but for the smoothing of the two.
    """
    table = positions.float().transpose(1, 2).unflatten(2, grid)
    table = F.interpolate(table, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    centres = [(torch.arange(length, device=positions.device) + 0.5) / length for length in grid]
    x = boxes[:, 0, None] + boxes[:, 2, None] * centres[1]
    y = boxes[:, 1, None] + boxes[:, 3, None] * centres[0]
    places = torch.stack(torch.broadcast_tensors(x.unsqueeze(1), y.unsqueeze(2)), dim=-1) * 2 - 1
    table = table.expand(len(boxes), -1, -1, -1)
    cut = F.grid_sample(table, places, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.flatten(2).transpose(1, 2)
