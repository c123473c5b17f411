"""Cascade Mask R-CNN with ViT-L on COCO in ViTDet's recipe, 1024 x 1024, 100 epochs of batch 64.

Reproduces: ViTDet, 57.6 box AP and 50.0 mask AP (detectron2 projects/ViTDet, MAE weights).
Cost: not measured here; about 2,110 A100 hours as published (0.643 s per image and GPU, 22.3 GB).
Command: tools/dist_train.sh configs/coco_cascade_maskrcnn_vitl.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = ["./_base_/coco_cascade_maskrcnn.py", "./_base_/coco_schedule_vitdet.py"]

model = dict(
    backbone=dict(model="adpe_vit_large_patch16", global_attn_indexes=(5, 11, 17, 23), drop_path_rate=0.4),
    neck=dict(in_channels=1024),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
