"""mmdet's heads where ViTDet's recipe (detectron2) asks for something else: matching, initialisation, the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.model import ModuleList
from mmengine.registry import MODELS, TASK_UTILS
from torch import Tensor, nn

from adpe.engine.mmengine_internals import CascadeStages
from adpe.errors import UserError, require

require("mmdet", "requirements/mm.txt")
from mmdet.models.dense_heads import RPNHead  # noqa: E402
from mmdet.models.roi_heads import CascadeRoIHead  # noqa: E402
from mmdet.models.roi_heads.bbox_heads import Shared4Conv1FCBBoxHead  # noqa: E402
from mmdet.models.roi_heads.mask_heads import FCNMaskHead  # noqa: E402
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner  # noqa: E402
from mmdet.models.utils import empty_instances  # noqa: E402
from mmdet.structures.bbox import bbox2roi, get_box_tensor  # noqa: E402


@TASK_UTILS.register_module()
class AdPEAnchorAssigner(MaxIoUAssigner):
    """mmdet's assigner with detectron2's rule for anchors that are positive only as the best one of an object.

    Whichever object made an anchor positive, its box targets are of the object that it overlaps most
    (detectron2/modeling/matcher.py); mmdet gives it to the last object whose best anchor it is. With ``min_pos_iou=0``
    every object has an anchor, however small it is, as in detectron2.

    Arguments are those of mmdet's MaxIoUAssigner.
    """

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        if overlaps.numel():
            positive = result.gt_inds > 0
            nearest = overlaps.max(dim=0).indices[positive]
            result.gt_inds[positive] = nearest + 1
            result.labels[positive] = gt_labels[nearest]
        return result


@MODELS.register_module()
class AdPERPNHead(RPNHead):
    """mmdet's RPN head whose boxes are decoded in float32 under autocast, as detectron2 does."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class AdPEBoxHead(Shared4Conv1FCBBoxHead):
    """mmdet's box head of four convolutions and one linear layer with detectron2's initialisation and cascade.

    - The linear layer has detectron2's ``c2_xavier_fill`` (uniform, variance 1 / fan-in); mmdet's divides by the mean
      of fan-in and fan-out.
    - Predictions are float32 under autocast, so that boxes are decoded in float32.
    - All boxes of a stage of the cascade go on to the next, also those of the ground truth that were appended to the
      proposals (mmdet drops these after the first stage), except boxes that are left without area
      (detectron2/modeling/roi_heads/cascade_rcnn.py).

    Arguments are those of mmdet's Shared4Conv1FCBBoxHead.
    """

    def init_weights(self) -> None:
        super().init_weights()
        for layer in self.shared_fcs:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()

    def refine_bboxes(
        self, sampling_results: list[Any], bbox_results: dict[str, Any], batch_img_metas: list[dict]
    ) -> list[Any] | None:
        """One InstanceData an image with `bboxes` (n, 4) in pixels for the next stage; None if there are no boxes."""
        none_is_ground_truth = [
            SimpleNamespace(pos_is_gt=torch.zeros_like(result.pos_is_gt)) for result in sampling_results
        ]
        refined = super().refine_bboxes(none_is_ground_truth, bbox_results, batch_img_metas)
        if refined is None:
            return None
        boxes = [get_box_tensor(result.bboxes) for result in refined]
        return [result[(b[:, 2:] > b[:, :2]).all(dim=1)] for result, b in zip(refined, boxes, strict=True)]


@MODELS.register_module()
class AdPEMaskHead(FCNMaskHead):
    """mmdet's mask head whose last layer starts at a standard deviation of 0.001, as in detectron2.

    Arguments are those of mmdet's FCNMaskHead.
    """

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=0.001)


@MODELS.register_module()
class AdPECascadeRoIHead(CascadeStages, CascadeRoIHead):
    """mmdet's cascade with detectron2's losses and scores: one mask head, one gradient into the features.

    - One mask head, trained on the proposals of the first stage and applied to the boxes of the last; mmdet has one a
      stage and averages their masks.
    - Every stage's box losses count fully in its own head; what they send back into the features is divided by the
      number of stages. Leave ``stage_loss_weights`` at ones.
    - At test a box's score is the mean of the stages' probabilities; mmdet's is the softmax of their mean logits.

    Arguments are those of mmdet's CascadeRoIHead, with one `mask_head` and one `mask_roi_extractor`. Use AdPEBoxHead,
    which hands all boxes on.

    Raises:
        UserError: for a classification loss that does not take the softmax of its logits.
    """

    def init_bbox_head(self, bbox_roi_extractor: Any, bbox_head: Any) -> None:
        super().init_bbox_head(bbox_roi_extractor, bbox_head)
        for stage, head in enumerate(self.bbox_head):
            if head.custom_activation:
                raise UserError(
                    f"AdPECascadeRoIHead averages softmax probabilities: bbox_head[{stage}].loss_cls = "
                    f"{type(head.loss_cls).__name__} has an activation of its own; use mmdet's CascadeRoIHead."
                )

    def init_mask_head(self, mask_roi_extractor: dict, mask_head: dict) -> None:
        # mmengine's list, through which the head's initialisation is reached; mmdet has torch's here.
        self.mask_head = ModuleList([MODELS.build(mask_head)])
        self.mask_roi_extractor = ModuleList([MODELS.build(mask_roi_extractor)])
        self.share_roi_extractor = False

    def box_results(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        return super().box_results(stage, tuple(divide_gradient(level, self.num_stages) for level in x), rois)

    def mask_results(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        return super().mask_results(0, x, rois)

    def refine(
        self,
        x: tuple[Tensor, ...],
        rois: Tensor,
        batch_img_metas: list[dict],
        num_proposals_per_img: Sequence[int],
        **kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """Boxes (n, 5) that enter the last stage, log of the mean probabilities (n, C + 1), last deltas; an image each.

        A softmax, which mmdet takes of scores, gives the probabilities back.
        """
        counts = list(num_proposals_per_img)
        total: Tensor | None = None
        for stage, head in enumerate(self.bbox_head):
            results = self.box_results(stage, x, rois)
            scores, deltas = results["cls_score"].float(), results["bbox_pred"]
            total = scores.softmax(dim=-1) if total is None else total + scores.softmax(dim=-1)
            if stage == self.num_stages - 1:
                break
            labels = scores[:, :-1].argmax(dim=1)
            parts = zip(*(part.split(counts) for part in (rois, labels, deltas)), batch_img_metas, strict=True)
            rois = torch.cat([
                torch.cat([roi[:, :1], get_box_tensor(head.regress_by_class(roi[:, 1:], label, delta, meta))], dim=1)
                for roi, label, delta, meta in parts
            ])  # fmt: skip
        assert total is not None
        return rois.split(counts), (total / self.num_stages).log().split(counts), deltas.split(counts)

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
