"""DINO (arXiv 2104.14294), ViT-S, 300 epochs, on the class vector of SelfPatch's head: SelfPatch without its patches.

Reproduces: no number. DINO in the README of alinlab/SelfPatch (COCO Mask R-CNN 1x 40.8 box AP and 37.3 mask AP, ADE20K
UperNet 42.3 mIoU) has its class token inside the encoder, as ``method="dino"``.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/self_distillation/dino_vits_300e.py 8
"""

_base_ = "./selfpatch_vits_300e.py"

model = dict(patch_loss_weight=0.0)
record = dict(method="DINO")
