"""Mask R-CNN on COCO with GC ViT-tiny (arXiv 2206.09959) under an FPN, windows of 24 as published.

Reproduces: no published number as it stands: the authors report 47.9 box / 43.2 mask AP after 36 epochs of DETR's
multi-scale crops (README of NVlabs/GCVit, detection); the schedule and augmentation here are those of
configs/coco_maskrcnn_vitb.py.
Cost: not measured.
Command: tools/dist_train.sh configs/backbones/coco_maskrcnn_gcvit_tiny.py 8 --cfg-options pretrained=CHECKPOINT
"""

_base_ = "../coco_maskrcnn_vitb.py"

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type="AdPEGCViT",
        variant="tiny",
        init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
    ),
    neck=dict(_delete_=True, type="FPN", in_channels=[64, 128, 256, 512], out_channels=256, num_outs=5),
)
record = dict(method="GC ViT" if pretrained else "random", start="pretrained" if pretrained else "random")
