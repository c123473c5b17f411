"""mmdet's heads where ViTDet's recipe asks for something else: mixed precision in the RPN, detectron2's cascade."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.errors import require

require("mmdet", "requirements/mm.txt")
from mmdet.models.dense_heads import RPNHead  # noqa: E402
from mmdet.models.roi_heads import CascadeRoIHead  # noqa: E402
from mmdet.models.utils import empty_instances  # noqa: E402
from mmdet.structures.bbox import bbox2roi  # noqa: E402


@MODELS.register_module()
class AdPERPNHead(RPNHead):
    """mmdet's RPN head with outputs in float32 under autocast: mmcv's non-maximum suppression knows no bfloat16."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class AdPECascadeRoIHead(CascadeRoIHead):
    """mmdet's cascade with detectron2's losses: one mask head, and stages that share one gradient into the features.

    - One mask head, trained on the proposals of the first stage and applied to the boxes of the last; mmdet has one a
      stage and averages their masks.
    - Every stage's box losses count fully in its own head; what they send back into the features is divided by the
      number of stages. Leave ``stage_loss_weights`` at ones.

    Arguments are those of mmdet's CascadeRoIHead, with one `mask_head` and one `mask_roi_extractor`.
    """

    def init_mask_head(self, mask_roi_extractor: dict, mask_head: dict) -> None:
        self.mask_head = nn.ModuleList([MODELS.build(mask_head)])
        self.mask_roi_extractor = nn.ModuleList([MODELS.build(mask_roi_extractor)])
        self.share_roi_extractor = False

    def _bbox_forward(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        return super()._bbox_forward(stage, tuple(divide_gradient(level, self.num_stages) for level in x), rois)

    def _mask_forward(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        return super()._mask_forward(0, x, rois)

    def mask_loss(self, stage: int, *args: Any) -> dict[str, Any]:
        """The loss of the mask head in the first stage, nothing in the others."""
        return super().mask_loss(0, *args) if stage == 0 else {"loss_mask": {}}

    def predict_mask(
        self, x: tuple[Tensor, ...], batch_img_metas: list[dict], results_list: list[Any], rescale: bool = False
    ) -> list[Any]:
        """Add masks to the boxes of every image."""
        rois = bbox2roi([results.bboxes for results in results_list])
        threshold = self.test_cfg.mask_thr_binary
        if len(rois) == 0:
            return empty_instances(
                batch_img_metas, rois.device, "mask", instance_results=results_list, mask_thr_binary=threshold
            )
        predictions = self._mask_forward(0, x, rois)["mask_preds"].split([len(results) for results in results_list])
        head: Any = self.mask_head[0]
        return head.predict_by_feat(
            mask_preds=predictions,
            results_list=results_list,
            batch_img_metas=batch_img_metas,
            rcnn_test_cfg=self.test_cfg,
            rescale=rescale,
        )


def divide_gradient(x: Tensor, divisor: int) -> Tensor:
    """`x` as it is, whose gradient arrives divided by `divisor`."""
    if not x.requires_grad:
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient / divisor)
    return x
