"""AdPE, relative positions, coordinate adversary, ViT-L, 1600 epochs.

Reproduces: ImageNet top-1 86.3 after fine-tuning (README of the AdPE repository; arXiv 2303.07598).
The norm and bound of the published adversary are not known: none here (model.adversary_norm,
model.adversary_epsilon).
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/adpe_rpe_coordinate_vitl_1600e.py 8
"""

_base_ = "../_base_/pretrain_1600e.py"

model = dict(model="adpe_vit_large_patch16", position="relative", adversary="coordinate")
train_dataloader = dict(batch_size=64)
record = dict(method="AdPE RPE coordinate")
