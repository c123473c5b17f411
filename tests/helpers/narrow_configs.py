"""Options that make the shipped configs narrow and shallow enough for a test: the same parts, in the same order."""

from __future__ import annotations

from typing import Any

WIDTH = 64  # of the encoder
CHANNELS = 24  # of the pyramid and the heads


def detection(side: int, classes: int, *, cascade: bool) -> dict[str, Any]:
    """Of configs/coco_maskrcnn_vitb.py, or with `cascade` of coco_cascade_maskrcnn_vitb.py.

    Args:
        side: pixels of the square that photographs are resized into and padded to.
        classes: number of.
    """
    heads = [f"bbox_head.{i}" for i in range(3)] if cascade else ["bbox_head"]
    sampler = f"model.train_cfg.rcnn{'.0' if cascade else ''}.sampler"
    narrow = {"in_channels": CHANNELS, "conv_out_channels": CHANNELS}
    return {
        "image_size": (side, side),
        "num_classes": classes,
        **_encoder(2),
        "model.backbone.window_size": 4,
        "model.backbone.global_attn_indexes": (1,),
        "model.neck.in_channels": WIDTH,
        "model.neck.out_channels": CHANNELS,
        "model.rpn_head.in_channels": CHANNELS,
        "model.rpn_head.feat_channels": CHANNELS,
        "model.roi_head.bbox_roi_extractor.out_channels": CHANNELS,
        "model.roi_head.mask_roi_extractor.out_channels": CHANNELS,
        **{f"model.roi_head.{head}.{key}": value for head in heads for key, value in narrow.items()},
        **{f"model.roi_head.{head}.fc_out_channels": 128 for head in heads},
        **{f"model.roi_head.mask_head.{key}": value for key, value in narrow.items()},
        "model.roi_head.mask_head.num_convs": 2,
        **{f"model.{one}.{key}": value for one in ("train_cfg.rpn_proposal", "test_cfg.rpn")
           for key, value in {"nms_pre": 200, "max_per_img": 60}.items()},
        f"{sampler}.num": 32,
        f"{sampler}.pos_fraction": 0.5,
    }  # fmt: skip


def segmentation(side: int, classes: int) -> dict[str, Any]:
    """Of configs/ade20k_upernet_vitb.py, with crops of `side` x `side` pixels and this number of classes."""
    return {
        "crop_size": (side, side),
        "num_classes": classes,
        **_encoder(4),
        "model.backbone.out_indices": (0, 1, 2, 3),
        "model.neck.embed_dim": WIDTH,
        "model.decode_head.in_channels": [WIDTH] * 4,
        "model.decode_head.channels": CHANNELS,
        "model.auxiliary_head.in_channels": WIDTH,
        "model.auxiliary_head.channels": CHANNELS,
        "model.test_cfg.stride": (2 * side // 3, 2 * side // 3),
    }


def _encoder(depth: int) -> dict[str, Any]:
    return {
        "model.backbone.embed_dim": WIDTH,
        "model.backbone.depth": depth,
        "model.backbone.num_heads": 4,
        "model.backbone.drop_path_rate": 0.0,
    }
