"""AdPE, relative positions, coordinate adversary, ViT-H, 1600 epochs.

Reproduces: the README of the AdPE repository announces it and gives no number ("waiting"); MAE's ViT-H reaches 86.9.
The norm and bound of the published adversary are not known: none here (model.adversary_norm,
model.adversary_epsilon).
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/adpe_rpe_coordinate_vith_1600e.py 8
"""

_base_ = "../_base_/pretrain_1600e.py"

model = dict(model="adpe_vit_huge_patch14", position="relative", adversary="coordinate")
train_dataloader = dict(batch_size=32)
record = dict(method="AdPE RPE coordinate")
