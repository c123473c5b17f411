"""MAE+, relative positions, no adversary, ViT-B, 400 epochs.

Reproduces: no number is published that we know of.
Cost: not measured. The reference used one machine of 8 V100 (32 GB), accumulating 4 steps, or 4 of them.
Command: tools/dist_train.sh configs/pretrain/mae_plus_rpe_vitb_400e.py 8
"""

_base_ = "../_base_/pretrain_400e.py"

model = dict(model="adpe_vit_base_patch16", position="relative")
record = dict(method="MAE+ RPE")
