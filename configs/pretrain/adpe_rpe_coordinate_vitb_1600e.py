"""AdPE, relative positions, coordinate adversary, ViT-B, 1600 epochs.

Reproduces: ImageNet top-1 84.4 after fine-tuning (README of the AdPE repository; arXiv 2303.07598).
The norm and bound of the published adversary are not known: none here (model.adversary_norm,
model.adversary_epsilon).
Cost: not measured. The reference used one machine of 8 V100 (32 GB), accumulating 4 steps, or 4 of them.
Command: tools/dist_train.sh configs/pretrain/adpe_rpe_coordinate_vitb_1600e.py 8
"""

_base_ = "../_base_/pretrain_1600e.py"

model = dict(model="adpe_vit_base_patch16", position="relative", adversary="coordinate")
record = dict(method="AdPE RPE coordinate")
