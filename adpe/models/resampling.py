"""Absolute positions of one patch grid for another: the rules of the frameworks that encoders come from.

========  =====================================================================================================
bicubic   a = -0.75, half-pixel centres, no antialias: MAE (util/pos_embed.py), AdPE, mmseg's MAE and BEiT,
          detectron2's ViTDet (get_abs_pos), CAE
timm      the same, antialiased: timm's ``resample_abs_pos_embed``
dino      as bicubic, by scale factors of (new + 0.1) / old: ``interpolate_pos_encoding`` of DINO and DINOv2
========  =====================================================================================================

They differ where a grid grows by a little, and "timm" where it shrinks. "recompute" resamples nothing: it makes the
sine-cosine table of the grid at hand, whose coordinates an encoder trained on a smaller grid has never seen.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.models.pos_embed import cached_table, sincos_table

PosEmbedResize = Literal["bicubic", "timm", "dino", "recompute"]


def resample_pos_embed(
    pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], rule: PosEmbedResize = "bicubic"
) -> Tensor:
    """Positions ``(1, K + h * w, D)`` of grid `old` for grid `new`, in their dtype; rows of class tokens are kept.

    Args:
        rule: see the module; "recompute" is none of these and counts as "bicubic", for tables that were learned.
    """
    if old == new:
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    cls, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    image = patches.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    if rule == "dino":
        factors = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
        image = F.interpolate(image, scale_factor=factors, mode="bicubic")
    else:
        image = F.interpolate(image, size=new, mode="bicubic", antialias=rule == "timm")
    return torch.cat([cls, image.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)


@cached_table
def resampled_sincos(
    old: tuple[int, int],
    new: tuple[int, int],
    dim: int,
    rule: PosEmbedResize,
    dtype: torch.dtype,
    device: torch.device,
    prefix: int = 1,
) -> Tensor:
    """``(1, prefix + h * w, dim)``: the fixed sine-cosine table of grid `old` for grid `new`."""
    with torch.inference_mode(False), torch.no_grad():
        if rule == "recompute":
            return sincos_table(*new, dim, dtype, device, prefix)
        return resample_pos_embed(sincos_table(*old, dim, torch.float32, device, prefix), old, new, rule).to(dtype)
