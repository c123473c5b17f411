"""Cascade Mask R-CNN with ViT-B on COCO in ViTDet's recipe, 1024 x 1024, 100 epochs of batch 64.

Reproduces: ViTDet, 54.0 box AP and 46.7 mask AP (detectron2 projects/ViTDet, MAE weights; standard deviation over 5
seeds 0.10 AP for ViT-B).
AdPE, 53.5 / 46.5 *implied* by its abstract (+3.2 / +1.6 over MAE's 50.3 / 44.9, which is Mask R-CNN) while its
repository trains Cascade Mask R-CNN: compare methods under the same detector.
Cost: not measured here; about 1,190 A100 hours as published (0.362 s per image and GPU, 12.3 GB).
Command: tools/dist_train.sh configs/coco_cascade_maskrcnn_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = ["./_base_/coco_cascade_maskrcnn.py", "./_base_/coco_schedule_vitdet.py"]
