"""MAE+, relative positions, no adversary, ViT-B, 1600 epochs.

Reproduces: ImageNet top-1 84.2 after fine-tuning (README of the AdPE repository; arXiv 2303.07598).
Cost: not measured. The reference used one machine of 8 V100 (32 GB), accumulating 4 steps, or 4 of them.
Command: tools/dist_train.sh configs/pretrain/mae_plus_rpe_vitb_1600e.py 8
"""

_base_ = "../_base_/pretrain_1600e.py"

model = dict(model="adpe_vit_base_patch16", position="relative")
record = dict(method="MAE+ RPE")
