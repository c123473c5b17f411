"""The counterpart of the linear segmentation probe for boxes: one 1x1 layer over frozen maps, as a head of mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads import FCOSHead
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class AdPELinearDetectionHead(FCOSHead):
    """Batch norm and 1x1 layers for class, box and centerness at every patch, with FCOS's targets and losses.

    FCOS (arXiv 1904.01355) without its convolutions and pyramid: every object is assigned to patches of one map. A
    protocol of this project; there is no published one for boxes.

    Args:
        num_classes: of the boxes.
        in_channels: of the joined map.
        stride: pixels of a patch.
        dropout_ratio: of whole channels, before the norm.
        options: of mmdet's FCOSHead.
    """

    def __init__(
        self, num_classes: int, in_channels: int, stride: int, dropout_ratio: float = 0.1, **options: Any
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            feat_channels=in_channels,
            stacked_convs=0,
            strides=[stride],
            regress_ranges=((-1, float("inf")),),
            norm_cfg=None,
            **options,
        )
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.norm = nn.BatchNorm2d(in_channels)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.conv_cls = nn.Conv2d(self.feat_channels, self.cls_out_channels, 1)
        self.conv_reg = nn.Conv2d(self.feat_channels, 4, 1)
        self.conv_centerness = nn.Conv2d(self.feat_channels, 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The joined map to logits of classes, distances to the box's sides in pixels, and centerness."""
        return super().forward(tuple(self.norm(self.dropout(x)) for x in maps))
