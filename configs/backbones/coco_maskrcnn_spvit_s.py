"""Mask R-CNN on COCO with SP-ViT-S (arXiv 2206.07662) under ViTDet's simple feature pyramid, 1024 x 1024.

Reproduces: no published number: the authors have none of detection. The recipe is configs/coco_maskrcnn_vitb.py, except
that all blocks attend to the whole image, since the prior has no windows; activations are recomputed for that.
Cost: not measured.
Command: tools/dist_train.sh configs/backbones/coco_maskrcnn_spvit_s.py 8 --cfg-options pretrained=CHECKPOINT
"""

_base_ = "../coco_maskrcnn_vitb.py"

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type="AdPESPViT",
        variant="small",
        out_indices=(-1,),
        grad_checkpointing=True,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
    ),
    neck=dict(in_channels=384),
)
record = dict(method="SP-ViT" if pretrained else "random", start="pretrained" if pretrained else "random")
