"""ViTDet's simple feature pyramid, which mmdet does not package (arXiv 2203.16527, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.evaluations.heads.linear_head import join_maps


@MODELS.register_module()
class AdPELayerNorm2d(nn.Module):
    """LayerNorm over the channels at every pixel of ``(B, C, H, W)``; for `norm_cfg` of pyramids and heads.

    Not a subclass of torch's LayerNorm: detectron2's is none either, and its weight decay follows from that.

    Args:
        num_channels: C.
        eps: added to the variance; 1e-6 in ViTDet.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


@MODELS.register_module()
class AdPEJoinMaps(BaseModule):
    """The maps of several blocks as one level, ``(B, sum of D, h, w)``: for heads that read them together."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor]:
        return (join_maps(maps),)


@MODELS.register_module()
class AdPESimpleFeaturePyramid(BaseModule):
    """Pyramid from the last map of a plain backbone: each level is that map rescaled, then a 1x1 and a 3x3 convolution.

    Both convolutions are followed by a norm, without activation and without bias. Scale 4 is two transposed
    convolutions with norm and GELU between, halving the channels each; 2 is one; 1 nothing; 0.5 max pooling.

    Args:
        in_channels: D of the map.
        out_channels: of every level.
        scales: of the levels over the map, fine to coarse, from 4, 2, 1 and 0.5.
        num_outs: number of levels; those beyond `scales` take every second pixel of the one before.
        norm_eps: eps of the norms.
        init_cfg: of mmengine's BaseModule.

    Raises:
        UserError: for another scale, or fewer levels than scales.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        num_outs: int = 5,
        norm_eps: float = 1e-6,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(scales):
            raise UserError(f"AdPESimpleFeaturePyramid: num_outs={num_outs} is less than the {len(scales)} scales.")
        self.num_outs = num_outs
        self.levels = nn.ModuleList()
        for scale in scales:
            rescale, channels = _rescale(scale, in_channels, norm_eps)
            self.levels.append(
                nn.Sequential(
                    *rescale,
                    nn.Conv2d(channels, out_channels, 1, bias=False),
                    AdPELayerNorm2d(out_channels, norm_eps),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    AdPELayerNorm2d(out_channels, norm_eps),
                )
            )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map ``(B, D, h, w)`` to `num_outs` maps ``(B, out_channels, h * scale, w * scale)``.

        The maps are contiguous, and float32 also under autocast: mmcv's RoIAlign knows no other layout and no bfloat16.

        Raises:
            ValueError: if the backbone gives another number of maps than one.
        """
        if len(maps) != 1:
            raise ValueError(f"The simple feature pyramid takes the last map alone, got {len(maps)}: one out_indices.")
        outputs = [level(maps[0]).float().contiguous() for level in self.levels]
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return tuple(outputs)


def _rescale(scale: float, channels: int, norm_eps: float) -> tuple[list[nn.Module], int]:
    """Layers that change the resolution by `scale`, and their number of output channels."""
    if scale == 4:
        half, quarter = channels // 2, channels // 4
        between = [AdPELayerNorm2d(half, norm_eps), nn.GELU()]
        return [nn.ConvTranspose2d(channels, half, 2, 2), *between, nn.ConvTranspose2d(half, quarter, 2, 2)], quarter
    if scale == 2:
        return [nn.ConvTranspose2d(channels, channels // 2, 2, 2)], channels // 2
    if scale == 1:
        return [], channels
    if scale == 0.5:
        return [nn.MaxPool2d(2)], channels
    raise UserError(f"AdPESimpleFeaturePyramid: scale {scale} is not one of 4, 2, 1, 0.5.")
