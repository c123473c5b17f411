"""The encoder under the frameworks' own models, as mmseg's and mmdet's configs have them: it trains and predicts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
import mmdet
import mmseg
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

import adpe.engine  # noqa: F401  registers
from adpe.data.composition import compose_scenes

SIZE = 64
WIDTH = 48
NUM_CLASSES = 4  # background and three digits; detection has the digits
NARROW = dict.fromkeys((2048, 1024, 768, 512, 256), 32)
PYRAMID = {"type": "Feature2Pyramid", "embed_dim": WIDTH, "rescales": [2, 1, 0.5, 0.25], "norm_cfg": {"type": "BN"}}
SEGMENTATION = {
    "UperNet": "_base_/models/upernet_mae.py",
    "FCN": "_base_/models/fcn_r50-d8.py",
    "PSPNet": "_base_/models/pspnet_r50-d8.py",
    "Segmenter": "_base_/models/segmenter_vit-b16_mask.py",
    "SETR": "_base_/models/setr_pup.py",
    "Mask2Former": "mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py",
}
DETECTION = {
    "Mask R-CNN": "_base_/models/mask-rcnn_r50_fpn.py",
    "Cascade Mask R-CNN": "_base_/models/cascade-mask-rcnn_r50_fpn.py",
    "RetinaNet": "_base_/models/retinanet_r50_fpn.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}


def backbone(out_indices: tuple[int, ...]) -> dict[str, Any]:
    size = {"img_size": SIZE, "patch_size": 8, "embed_dim": WIDTH, "depth": 4, "num_heads": 4}
    return {"type": "AdPEViT", "position": "relative", "out_indices": out_indices, **size}


def narrowed(node: Any, key: str = "") -> Any:
    """A model's config with narrow heads, few classes and BatchNorm of one process."""
    if isinstance(node, dict):
        node = {name: narrowed(value, name) for name, value in node.items()}
        return {**node, "type": "BN"} if node.get("type") == "SyncBN" else node
    if isinstance(node, (list, tuple)):
        return [narrowed(value, key) for value in node]
    if key == "num_classes":
        return NUM_CLASSES
    if key.endswith(("channels", "embed_dims", "num_feats")) and isinstance(node, int):
        return NARROW.get(node, 16 if key == "num_feats" else node)
    return node


def their_model(package: Any, path: str) -> dict[str, Any]:
    cfg = Config.fromfile(Path(package.__file__).parent / ".mim" / "configs" / path).model.to_dict()
    cfg.pop("pretrained", None)
    return narrowed(cfg)


def segmentor(name: str) -> dict[str, Any]:
    cfg = their_model(mmseg, SEGMENTATION[name])
    plain = name not in ("UperNet", "Mask2Former")
    heads = [cfg["decode_head"], *as_list(cfg.get("auxiliary_head"))]
    for head in heads:
        several = len(head["in_channels"]) > 1 if isinstance(head["in_channels"], list) else False
        head["in_channels"] = [WIDTH] * 4 if several else WIDTH
    cfg["backbone"] = backbone((0, 1, 2, 3))
    cfg["neck"] = None if plain else PYRAMID
    if name == "Segmenter":
        cfg["decode_head"].update(embed_dims=WIDTH, channels=WIDTH, num_heads=4)
        cfg["decode_head"]["in_index"] = -1
    if name == "Mask2Former":
        head = cfg["decode_head"]
        head["loss_cls"]["class_weight"] = [1.0] * NUM_CLASSES + [0.1]
        head["pixel_decoder"]["norm_cfg"]["num_groups"] = 8
        head["pixel_decoder"]["encoder"]["num_layers"] = 1
        head["transformer_decoder"]["num_layers"] = 2
        head.update(num_queries=10)
        head["train_cfg"]["num_points"] = 256
    cfg["data_preprocessor"].update(size=(SIZE, SIZE), test_cfg=None)
    cfg["test_cfg"] = {"mode": "whole"}
    return cfg


def detector(name: str) -> dict[str, Any]:
    cfg = their_model(mmdet, DETECTION[name])
    for node in (cfg.get("roi_head") or {}, cfg.get("bbox_head") or {}):
        for head in (node, *(one for key in ("bbox_head", "mask_head") for one in as_list(node.get(key)))):
            if "num_classes" in head:
                head["num_classes"] = NUM_CLASSES - 1
    two_stages = "roi_head" in cfg
    cfg["backbone"] = backbone((-1,))
    # From maps of stride 8: strides 4 to 64, or 8 to 128 for detectors of one stage.
    scales = (2.0, 1.0, 0.5) if two_stages else (1.0, 0.5)
    cfg["neck"] = {"type": "AdPESimpleFeaturePyramid", "in_channels": WIDTH, "out_channels": 32, "scales": scales}
    if name == "DINO":
        cfg["neck"]["num_outs"] = 4
        cfg["bbox_head"]["embed_dims"] = NARROW[256]
        cfg["encoder"]["num_layers"] = cfg["decoder"]["num_layers"] = 2
        cfg["num_queries"] = cfg["test_cfg"]["max_per_img"] = 20
        cfg["dn_cfg"]["group_cfg"]["num_dn_queries"] = 10
    return cfg


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def build(scope: str, cfg: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(ConfigDict(cfg))
        model.init_weights()
    return model.train()


@cache
def scenes() -> list[Any]:
    return list(compose_scenes(2, "training", size=SIZE))


def batch(scope: str) -> dict[str, list]:
    """Two scenes of digits over photographs, as the data loader hands them over (BGR)."""
    samples = []
    for index, scene in enumerate(scenes()):
        sample = SegDataSample() if scope == "mmseg" else DetDataSample()
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (SIZE, SIZE))
        sample.set_metainfo({**shapes, "scale_factor": (1.0, 1.0), "img_id": index})
        if scope == "mmseg":
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(scene.labels.astype(np.int64) - 1)[None])
        else:
            masks = np.stack([scene.instances == k + 1 for k in range(len(scene.digits))]).astype(np.uint8)
            boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in map(np.nonzero, masks)]
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor(np.array(boxes), dtype=torch.float32),
                labels=torch.tensor(scene.digits),
                masks=BitmapMasks(masks, SIZE, SIZE),
            )
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    images = [torch.from_numpy(scene.image[..., ::-1].copy()).permute(2, 0, 1) for scene in scenes()]
    return {"inputs": images, "data_samples": samples}


def total_loss(model: nn.Module, scope: str) -> tuple[Tensor, dict[str, Tensor]]:
    return model.parse_losses(model(**model.data_preprocessor(batch(scope), training=True), mode="loss"))


def steps(model: nn.Module, scope: str, count: int, lr: float) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(count):
        loss, _ = total_loss(model, scope)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_step(model: nn.Module, scope: str) -> None:
    """Finite losses whose gradient reaches every parameter of the encoder, and a step that moves the first layer."""
    loss, values = total_loss(model, scope)
    assert all(torch.isfinite(value).all() for value in values.values())
    assert loss > 0
    loss.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    weight = model.backbone.patch_embed.proj.weight
    assert weight.grad.abs().sum() > 0
    before = weight.detach().clone()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert not torch.equal(before, weight)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(name: str) -> None:
    model = build("mmseg", segmentor(name))
    check_step(model, "mmseg")
    with torch.no_grad():
        predictions = model.eval().test_step(batch("mmseg"))
    for sample in predictions:
        logits, labels = sample.seg_logits.data, sample.pred_sem_seg.data
        assert logits.shape == (NUM_CLASSES, SIZE, SIZE)
        assert torch.isfinite(logits).all()
        assert torch.equal(labels, logits.argmax(0, keepdim=True))


@pytest.mark.parametrize("name", DETECTION)
def test_detection(name: str) -> None:
    model = build("mmdet", detector(name))
    check_step(model, "mmdet")
    # At the start no score need exceed the threshold.
    for cfg in (model.test_cfg, model.test_cfg.get("rcnn") or {}):
        if "score_thr" in cfg:
            cfg["score_thr"] = 0.0
    with torch.no_grad():
        predictions = model.eval().test_step(batch("mmdet"))
    for sample in predictions:
        found = sample.pred_instances
        assert 0 < len(found) <= 100
        assert found.bboxes.shape == (len(found), 4)
        assert found.bboxes.min() >= 0
        assert found.bboxes.max() <= SIZE
        assert 0 <= found.labels.min() <= found.labels.max() < NUM_CLASSES - 1
        if "Mask" in name:
            assert found.masks.shape == (len(found), SIZE, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "name", "lr"), [("mmseg", "UperNet", 5e-3), ("mmdet", "RetinaNet", 2e-3)])
def test_loss_falls(scope: str, name: str, lr: float) -> None:
    """Twenty steps on two scenes: at the end three quarters of the start or less."""
    model = build(scope, segmentor(name) if scope == "mmseg" else detector(name))
    losses = steps(model, scope, 20, lr)
    assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3]), losses
