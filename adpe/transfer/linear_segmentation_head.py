"""The linear segmentation probe as a decode head of mmseg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from adpe.evaluations.heads.linear_head import LinearHead


@MODELS.register_module()
class AdPELinearSegmentationHead(BaseDecodeHead):
    """:class:`adpe.evaluations.heads.linear_head.LinearHead` under mmseg's losses and inference.

    mmseg's CrossEntropyLoss averages over all pixels, as the probe does.

    Args:
        in_channels: of the joined map.
        num_classes: of the labels.
        dropout_ratio: of whole channels, before the norm.
        norm_cfg: of the batch norm, shared by processes with "SyncBN".
        options: of mmseg's BaseDecodeHead.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dropout_ratio: float = 0.1,
        norm_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=in_channels,
            num_classes=num_classes,
            dropout_ratio=0.0,
            init_cfg=None,
            **{"in_index": 0, **options},
        )
        self.conv_seg = LinearHead(in_channels, self.out_channels, dropout_ratio)
        self.conv_seg.norm = build_norm_layer(norm_cfg or {"type": "SyncBN"}, in_channels)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps of the neck to logits ``(B, classes, h, w)``."""
        return self.conv_seg.classify(self._transform_inputs(inputs))
