"""MAE+, relative positions, no adversary, ViT-L, 400 epochs.

Reproduces: no number is published that we know of.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/mae_plus_rpe_vitl_400e.py 8
"""

_base_ = "../_base_/pretrain_400e.py"

model = dict(model="adpe_vit_large_patch16", position="relative")
train_dataloader = dict(batch_size=64)
record = dict(method="MAE+ RPE")
