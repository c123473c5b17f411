"""The models of the configs as they train, small enough for a CPU, and random images with their ground truth."""

from __future__ import annotations

import numpy as np
import torch
from built_configs import build
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn


def trainable(cfg: Config) -> tuple[nn.Module, OptimWrapper]:
    """Model and optimizer of a config for the CPU: no synchronised BatchNorm, few proposals."""
    if cfg.default_scope == "mmdet" and cfg.model.get("roi_head"):
        rcnn = cfg.model.train_cfg.rcnn
        (rcnn[0] if isinstance(rcnn, list) else rcnn).sampler.num = 24
        cfg.model.test_cfg.rpn.max_per_img = 24
    for part in ("neck", "decode_head", "auxiliary_head") if cfg.default_scope == "mmseg" else ():
        if "norm_cfg" in (cfg.model.get(part) or {}):
            cfg.model[part].norm_cfg.type = "BN"
    torch.manual_seed(0)
    model = build(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return model.train(), build_optim_wrapper(model, cfg.optim_wrapper)


def batch(cfg: Config, size: int) -> dict[str, list]:
    """Two random images with their ground truth, as the data loader hands them over."""
    rng = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=rng) for _ in range(2)]
    shapes = {**dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (size, size)), "scale_factor": (1.0, 1.0)}
    samples = []
    for index in range(2):
        if cfg.default_scope == "mmseg":
            from mmseg.structures import SegDataSample

            sample = SegDataSample()
            sample.gt_sem_seg = PixelData(data=torch.randint(0, cfg.num_classes, (1, size, size), generator=rng))
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
            masks = np.zeros((2, size, size), dtype=np.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
            sample = DetDataSample()
            sample.gt_instances = InstanceData(
                bboxes=boxes, labels=torch.tensor([1, 2]), masks=BitmapMasks(masks, size, size)
            )
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample.set_metainfo({**shapes, "img_id": index})
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}
