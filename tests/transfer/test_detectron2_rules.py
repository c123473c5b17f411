"""The COCO configs' heads against detectron2's rules, written down here on their own: matching, masks, cascade, starts.

Sources: detectron2's modeling/matcher.py, modeling/roi_heads/{cascade_rcnn,box_head,mask_head,fast_rcnn}.py,
modeling/proposal_generator/rpn.py and structures/masks.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("mmdet")
from built_configs import CASCADE, COCO, build, config
from mmengine.registry import DATASETS, MODELS, TASK_UTILS, DefaultScope
from mmengine.structures import InstanceData
from pycocotools import mask as coco_masks
from torchvision.ops import box_iou

SIDE = 64


def cascade_head(**changes: Any) -> Any:
    """The RoI head of the Cascade config with 8 channels and weights large enough to say something."""
    cfg = config("configs/coco_cascade_maskrcnn_vitb.py").model
    for head in [*cfg.roi_head.bbox_head, cfg.roi_head.mask_head]:
        head.update(in_channels=8, conv_out_channels=8, num_classes=5)
    for head in cfg.roi_head.bbox_head:
        head.fc_out_channels = 16
    for extractor in (cfg.roi_head.bbox_roi_extractor, cfg.roi_head.mask_roi_extractor):
        extractor.out_channels = 8
    cfg.test_cfg.rcnn.update(changes)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        roi_head = MODELS.build({**cfg.roi_head, "train_cfg": cfg.train_cfg.rcnn, "test_cfg": cfg.test_cfg.rcnn})
    for head in roi_head.bbox_head:
        torch.nn.init.normal_(head.fc_cls.weight, std=2.0)
        torch.nn.init.normal_(head.fc_reg.weight, std=0.5)
    return roi_head


def features() -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 8, SIDE >> (i + 2), SIDE >> (i + 2)) for i in range(4))


def boxes(count: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=generator) * SIDE
    return torch.cat([corners.amin(1), corners.amax(1) + 2], dim=1).clamp(max=SIDE)


# The cascade ---------------------------------------------------------------------------------------------------------


def decode(rois: Tensor, deltas: Tensor, weights: tuple[float, float]) -> Tensor:
    """Box2BoxTransform.apply_deltas, clipped to the image."""
    size = rois[:, 2:] - rois[:, :2]
    centre = rois[:, :2] + 0.5 * size + deltas[:, :2] / weights[0] * size
    size = size * (deltas[:, 2:] / weights[1]).clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=1).clamp(0, SIDE)


def test_scores_at_test_are_the_mean_of_probabilities() -> None:
    """Not the softmax of mean logits; the boxes are those of the last stage."""
    roi_head = cascade_head(score_thr=0.0, nms={"type": "nms", "iou_threshold": 1.0}, max_per_img=1000).eval()
    x, generator = features(), torch.Generator().manual_seed(1)
    proposals = [boxes(5, generator), boxes(7, generator)]
    index = torch.cat([torch.full((len(p), 1), float(i)) for i, p in enumerate(proposals)])
    rois = torch.cat(proposals)
    probabilities, logits = [], []
    with torch.no_grad():
        for head, extractor, weights in zip(
            roi_head.bbox_head, roi_head.bbox_roi_extractor, [(10, 5), (20, 10), (30, 15)], strict=True
        ):
            scores, deltas = head(extractor(x, torch.cat([index, rois], dim=1)))
            logits.append(scores)
            probabilities.append(scores.softmax(-1))
            rois = decode(rois, deltas, weights)
        metas = [{"img_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0)}] * 2
        predictions = roi_head.predict_bbox(
            x, metas, [InstanceData(bboxes=p) for p in proposals], roi_head.test_cfg, rescale=False
        )
    mean = torch.stack(probabilities).mean(0)[:, :-1]
    assert (mean - torch.stack(logits).mean(0).softmax(-1)[:, :-1]).abs().max() > 0.2  # the difference matters here
    for image, found in enumerate(predictions):
        own = index[:, 0] == image
        assert len(found) == mean[own].numel()
        for label in range(5):
            scores, order = mean[own, label].sort(descending=True)
            of_class = found[found.labels == label]
            torch.testing.assert_close(of_class.scores, scores, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(of_class.bboxes, rois[own][order], rtol=1e-4, atol=1e-3)


def test_all_boxes_of_a_stage_go_on_to_the_next() -> None:
    """40 proposals and 2 boxes of ground truth are 42 in every stage; their places and labels follow the rule."""
    roi_head = cascade_head().train()
    x, generator = features(), torch.Generator().manual_seed(2)
    x = tuple(level[:1] for level in x)
    truth, labels = torch.tensor([[5.0, 8, 40, 50], [30, 20, 60, 60]]), torch.tensor([1, 4])
    proposals = boxes(40, generator)
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    sample = DetDataSample(metainfo={"img_shape": (SIDE, SIDE)})
    masks = BitmapMasks(np.ones((2, SIDE, SIDE), dtype=np.uint8), SIDE, SIDE)
    sample.gt_instances = InstanceData(bboxes=truth, labels=labels, masks=masks)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    seen: list[tuple[Tensor, Tensor]] = []
    for extractor in roi_head.bbox_roi_extractor:
        extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].detach()))
    losses = roi_head.loss(x, [InstanceData(bboxes=proposals, scores=torch.rand(40))], [sample])
    assert [len(rois) for rois in seen] == [42, 42, 42]
    rois = torch.cat([proposals, truth])
    assert sorted(seen[0][:, 1:].tolist()) == sorted(rois.tolist())
    for stage, weights in enumerate([(10, 5), (20, 10), (30, 15)]):
        own = seen[stage][:, 1:]
        with torch.no_grad():
            scores, deltas = roi_head.bbox_head[stage](roi_head.bbox_roi_extractor[stage](x, seen[stage]))
            overlap, matched = box_iou(truth, own).max(0)
            positive = overlap >= (0.5, 0.6, 0.7)[stage]
            target = torch.where(positive, labels[matched], 5)
            expected = F.cross_entropy(scores, target)
        torch.testing.assert_close(losses[f"s{stage}.loss_cls"].detach(), expected)
        if stage < 2:
            torch.testing.assert_close(seen[stage + 1][:, 1:], decode(own, deltas, weights), rtol=1e-4, atol=1e-3)


def test_boxes_left_without_area_are_dropped() -> None:
    head = cascade_head().bbox_head[0]
    torch.nn.init.zeros_(head.fc_reg.weight)
    torch.nn.init.zeros_(head.fc_reg.bias)
    rois = torch.tensor([[0, 4.0, 4, 20, 28], [0, SIDE, 4, SIDE, 28], [0, 2, 2, 9, 9]])
    results = {"rois": rois, "bbox_pred": torch.zeros(3, 4), "cls_score": torch.zeros(3, 6),
               "bbox_targets": (torch.full((3,), 5), None, None, None)}  # fmt: skip
    sampling = [InstanceData(pos_is_gt=torch.ones(1, dtype=torch.uint8))]
    (refined,) = head.refine_bboxes(sampling, results, [{"img_shape": (SIDE, SIDE)}])
    assert refined.bboxes.tolist() == rois[[0, 2], 1:].tolist()


@pytest.mark.parametrize("name", CASCADE)
def test_the_cascades_have_these_heads(name: str) -> None:
    roi_head = config(name).model.roi_head
    assert roi_head.type == "AdPECascadeRoIHead"
    assert {head.type for head in roi_head.bbox_head} == {"AdPEBoxHead"}


# Matching of anchors -------------------------------------------------------------------------------------------------


def match(overlaps: Tensor) -> Tensor:
    """Of (objects, anchors) IoU: object + 1 an anchor, 0 background, -1 neither."""
    best, matched = overlaps.max(dim=0)
    label = torch.where(best >= 0.7, 1, torch.where(best < 0.3, 0, -1))
    label[(overlaps == overlaps.max(dim=1, keepdim=True).values).any(dim=0)] = 1
    return torch.where(label == 1, matched + 1, label)


@pytest.mark.parametrize("name", COCO)
def test_anchors_match_as_in_detectron2(name: str) -> None:
    """Objects of 4 to 16 pixels have anchors; of crowded ones an anchor belongs to the one that it overlaps most."""
    rpn = config(name).model
    with DefaultScope.overwrite_default_scope("mmdet"):
        assigner = TASK_UTILS.build(rpn.train_cfg.rpn.assigner)
        generator = TASK_UTILS.build(rpn.rpn_head.anchor_generator)
    anchors = torch.cat(generator.grid_priors([(64 >> i, 64 >> i) for i in range(5)], device="cpu"))
    torch.manual_seed(0)
    corner, size = torch.rand(30, 2) * 200, torch.cat([torch.rand(10, 2) * 12 + 4, torch.rand(20, 2) * 50 + 10])
    truth = torch.cat([corner, corner + size], dim=1)
    truth = torch.cat([truth, truth[10:] + 2.0])
    result = assigner.assign(
        InstanceData(priors=anchors), InstanceData(bboxes=truth, labels=torch.arange(len(truth)) % 3)
    )
    expected = match(box_iou(truth, anchors))
    torch.testing.assert_close(result.gt_inds, expected)
    assert result.labels[expected > 0].tolist() == ((expected[expected > 0] - 1) % 3).tolist()
    one = box_iou(truth[:10], anchors)
    assert (one.max(dim=1).values < 0.3).all()  # none of these would have an anchor with a floor of 0.3
    assert all((expected[row == row.max()] > 0).all() for row in one)
    nothing = assigner.assign(
        InstanceData(priors=anchors), InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    )
    assert not nothing.gt_inds.any()


# Mask targets --------------------------------------------------------------------------------------------------------

POLYGON = [100, 60, 117, 58, 121, 71, 109, 80, 99, 75]  # an object of 22 pixels, in whole numbers


def rasterize(polygons: list[Any], box: Tensor, side: int = 28) -> np.ndarray:
    """rasterize_polygons_within_box: the polygon at the target's size, drawn by pycocotools."""
    left, top, right, bottom = box.tolist()
    scale = np.array([side / max(right - left, 0.1), side / max(bottom - top, 0.1)])
    moved = [((np.array(p, dtype=float).reshape(-1, 2) - (left, top)) * scale).ravel().tolist() for p in polygons]
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(moved, side, side)))


def coco(folder: Path, annotations: list[dict]) -> Path:
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    Image.fromarray(np.full((240, 320, 3), 90, dtype=np.uint8)).save(folder / "train2017" / "a.jpg")
    common = {"image_id": 1, "category_id": 7, "area": 400, "iscrowd": 0, "bbox": [98, 57, 24, 24]}
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 320, "height": 240}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": n + 1, **common, **one} for n, one in enumerate(annotations)],
    }
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))
    return folder


def item(root: Path, ratio: float) -> Any:
    """The training item at one scale, not mirrored."""
    cfg = config("configs/coco_maskrcnn_vitb.py", {"data_root": str(root)})
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == "RandomResize":
            step.update(scale=(320, 240), ratio_range=(ratio, ratio))
        if step.type == "RandomFlip":
            step.prob = 0.0
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build(cfg.train_dataloader.dataset)[0]["data_samples"]


def targets(instances: Any, proposals: Tensor) -> np.ndarray:
    cfg = config("configs/coco_maskrcnn_vitb.py").model
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = MODELS.build(cfg.roi_head.mask_head)
    sampled = InstanceData(pos_priors=proposals, pos_assigned_gt_inds=torch.zeros(len(proposals), dtype=torch.long))
    return head.get_targets([sampled], [instances], cfg.train_cfg.rcnn).numpy()


@pytest.mark.parametrize("ratio", [0.2, 0.37, 1.0, 1.9])
def test_mask_targets_are_drawn_from_polygons(tmp_path: Path, ratio: float) -> None:
    """Pixel for pixel, for proposals that are tight, shifted and larger; the other annotation is a crowd's RLE."""
    crowd = {"iscrowd": 1, "segmentation": {"size": [240, 320], "counts": [5000, 900, 70900]}}
    sample = item(coco(tmp_path, [{"segmentation": [POLYGON]}, crowd]), ratio)
    instances, (height, width) = sample.gt_instances, sample.img_shape
    assert (len(instances), abs(height - 240 * ratio) < 1) == (1, True)
    polygon = np.array(POLYGON, dtype=float).reshape(-1, 2) * (width / 320, height / 240)
    tight = torch.tensor([*polygon.min(0), *polygon.max(0)], dtype=torch.float32)
    torch.testing.assert_close(instances.bboxes.tensor[0], tight)
    side = tight[2:] - tight[:2]
    shifted = tight + 0.2 * side.repeat(2)
    larger = torch.cat([tight[:2] - 0.3 * side, tight[2:] + 0.25 * side])
    proposals = torch.stack([tight, shifted, larger])
    expected = np.stack([rasterize([polygon.ravel()], box) for box in proposals])
    np.testing.assert_array_equal(targets(instances, proposals), expected)


def test_masks_of_rle_are_not_left_out(tmp_path: Path) -> None:
    """A single object's RLE: the image has bitmaps, of this object and of the polygon beside it."""
    area = coco_masks.encode(np.asfortranarray(np.pad(np.ones((30, 40), dtype=np.uint8), ((10, 200), (20, 260)))))
    rle = {"size": [240, 320], "counts": area["counts"].decode()}
    root = coco(tmp_path, [{"segmentation": rle, "bbox": [20, 10, 40, 30]}, {"segmentation": [POLYGON]}])
    instances = item(root, 1.0).gt_instances
    assert instances.bboxes.tensor.tolist()[0] == [20, 10, 60, 40]
    assert [int(mask.sum()) for mask in instances.masks.to_ndarray()] == [1200, int(rasterize_whole(POLYGON).sum())]


def rasterize_whole(polygon: list[int]) -> np.ndarray:
    return coco_masks.decode(coco_masks.frPyObjects([polygon], 240, 320))


# Starts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["configs/coco_maskrcnn_vitb.py", "configs/coco_cascade_maskrcnn_vitb.py"])
def test_heads_start_as_in_detectron2(name: str) -> None:
    """Standard deviations: c2_msra_fill and c2_xavier_fill of the layers' fans, and the predictors' fixed ones."""
    cfg = config(name, {"image_size": (64, 64)})
    cfg.model.backbone.update(depth=1, embed_dim=48, num_heads=4, global_attn_indexes=(0,))
    cfg.model.neck.in_channels = 48
    model = build(cfg)
    torch.manual_seed(0)
    model.rpn_head.init_weights()
    model.roi_head.init_weights()
    roi = model.roi_head
    box_heads, mask_heads = (roi.bbox_head, roi.mask_head) if name in CASCADE else ([roi.bbox_head], [roi.mask_head])

    def check(layer: Any, std: float, uniform: bool = False) -> None:
        weight = layer.weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.04)
        assert (float(weight.abs().max()) < 1.7321 * std) is uniform
        assert layer.bias is None or not layer.bias.any()

    for head in box_heads:
        for conv in head.shared_convs:
            check(conv.conv, math.sqrt(2 / (256 * 9)))
        check(head.shared_fcs[0], 1 / math.sqrt(256 * 49), uniform=True)
        check(head.fc_cls, 0.01)
        check(head.fc_reg, 0.001)
    (mask_head,) = mask_heads
    for conv in mask_head.convs:
        check(conv.conv, math.sqrt(2 / (256 * 9)))
    check(mask_head.upsample, math.sqrt(2 / (256 * 4)))
    check(mask_head.conv_logits, 0.001)
    rpn = model.rpn_head
    for conv in rpn.rpn_conv:
        check(conv.conv, 0.01)
    check(rpn.rpn_cls, 0.01)
    check(rpn.rpn_reg, 0.01)
