"""What the box and mask heads see: RoI features of both detectors, under our encoder and under timm's models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

pytest.importorskip("mmdet")
import narrow_configs
from built_configs import config
from mmengine.registry import MODELS, DefaultScope

import adpe.engine  # noqa: F401  registers and guards
from adpe.transfer.necks import AdPESimpleFeaturePyramid
from adpe.transfer.precise_boxes import keep_boxes_precise

DETECTORS = {"Mask R-CNN": "configs/coco_maskrcnn_vitb.py", "Cascade": "configs/coco_cascade_maskrcnn_vitb.py"}
STRIDES = (4, 8, 16, 32)
TIMM: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
    "resnet10t": {"out_indices": (1, 2, 3, 4)},
}


def detector(name: str, backbone: str) -> Any:
    """As shipped, narrow and shallow, or with a model of timm under mmdet's FPN."""
    cfg = config(DETECTORS[name], narrow_configs.detection(64, 3, cascade=name == "Cascade"))
    if backbone != "AdPEViT":
        cfg.model.backbone = {"type": "AdPETimmBackbone", "name": backbone, **TIMM[backbone]}
        channels = list(MODELS.build(cfg.model.backbone).channels)
        cfg.model.neck = {
            "type": "FPN",
            "in_channels": channels,
            "out_channels": narrow_configs.CHANNELS,
            "num_outs": 5,
        }
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(cfg.model).eval()


def rois(height: int, width: int) -> Tensor:
    """Boxes of every level, over the border too: (image, left, top, right, bottom) in pixels."""
    scale = torch.tensor([width, height, width, height])
    boxes = (
        torch.tensor([[0.1, 0.2, 0.3, 0.3], [0.5, 0.1, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0], [0.6, 0.7, 1.1, 1.2]]) * scale
    )
    beyond = [[-80.0, -90.0, 70.0, 80.0], [-200.0, -100.0, 250.0, 260.0], [-500.0, -500.0, 600.0, 600.0]]
    boxes = torch.cat([boxes, torch.tensor(beyond)])
    return torch.cat([torch.arange(len(boxes))[:, None] % 2, boxes], 1)


def reference(maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """The level of every box by FPN's equation 1 (arXiv 1612.03144) with 224 pixels at stride 16, torchvision there."""
    side = ((boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])).sqrt()
    levels = (4 + torch.log2(side / 224 + 1e-6)).floor().clamp(2, 5).long() - 2
    assert len(levels.unique()) == len(maps)
    rows = []
    for box, level in zip(boxes, levels.tolist(), strict=True):
        rows.append(torchvision.ops.roi_align(maps[level], box[None], size, 1 / STRIDES[level], -1, aligned=True))
    return torch.cat(rows)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("height", [64, 96], ids=["square", "96x64"])
@pytest.mark.parametrize("backbone", ["AdPEViT", *TIMM])
@pytest.mark.parametrize("name", DETECTORS)
def test_roi_features_are_torchvision_s(name: str, backbone: str, height: int, channels_last: bool) -> None:
    model = detector(name, backbone)
    images = torch.randn(2, 3, height, 64)
    if channels_last:
        model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    with torch.no_grad():
        maps = [level.requires_grad_() for level in model.extract_feat(images)[: len(STRIDES)]]
    if backbone == "AdPEViT":
        assert all(level.is_contiguous() for level in maps)
    boxes = rois(height, 64)
    extractors = [(model.roi_head.bbox_roi_extractor, 7), (model.roi_head.mask_roi_extractor, 14)]
    for extractor, size in extractors:
        for one in extractor if isinstance(extractor, nn.ModuleList) else [extractor]:
            found, expected = one(maps, boxes), reference(maps, boxes, size)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            # The gradient of the features may be in another layout too, as convolutions leave it.
            weights = torch.randn(found.shape).to(memory_format=torch.channels_last)
            ours, theirs = (torch.autograd.grad(y, maps, weights, retain_graph=True) for y in (found, expected))
            for gradient, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [
    {"type": "AdPEViT", "model": "adpe_vit_tiny_patch4", "depth": 2, "out_indices": (0, 1), "img_size": 32},
    {"type": "AdPEViT", "model": "adpe_vit_tiny_patch4", "depth": 2, "class_token": False, "window_size": 3,
     "use_rel_pos": True, "img_size": 32},
    *({"type": "AdPETimmBackbone", "name": name, **options} for name, options in TIMM.items()),
    {"type": "AdPETimmBackbone", "name": "convnext_atto", **TIMM["convnext_atto"], "out_channels": 12},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_are_contiguous(options: dict[str, Any], layout: torch.memory_format) -> None:
    """Of every backbone and neck of ours, in both layouts of the model and the images."""
    backbone = MODELS.build(options).eval().to(memory_format=layout)
    images = torch.randn(2, 3, 64, 96).to(memory_format=layout)
    maps = backbone(images)
    neck = AdPESimpleFeaturePyramid(maps[-1].shape[1], 8).to(memory_format=layout)
    pyramid = neck((maps[-1].to(memory_format=layout),))
    assert [y.shape for y in (*maps, *pyramid) if not y.is_contiguous()] == []
    if options["type"] == "AdPEViT":
        theirs = backbone.forward_intermediates(images[..., :32, :32], intermediates_only=True)
        assert [y.shape for y in theirs if not y.is_contiguous()] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_are_not_rounded_to_the_maps(dtype: torch.dtype) -> None:
    """Boxes of 1,024 x 1,024 pixels on maps of an FPN under autocast; mmdet's own extractor rounds them to 4 pixels."""
    model = detector("Mask R-CNN", "resnet10t")
    torch.manual_seed(0)
    maps = [F.avg_pool2d(torch.randn(2, narrow_configs.CHANNELS, 1024 // s, 1024 // s), 5, 1, 2) for s in STRIDES]
    low = [level.to(dtype) for level in maps]
    corners = torch.rand(20, 2) * 800
    boxes = torch.cat([torch.arange(20)[:, None] % 2, corners, corners + 20 + torch.rand(20, 2) * 200], 1)
    extractor = model.roi_head.bbox_roi_extractor
    expected = extractor([level.float() for level in low], boxes)
    rounded = extractor(low, boxes).float()
    assert (rounded - expected).square().mean() > 1e-4 * expected.square().mean()
    assert keep_boxes_precise(model) == 2
    torch.testing.assert_close(extractor(low, boxes), expected, rtol=0, atol=0)
