"""AdPE, relative positions, coordinate adversary, ViT-B, 400 epochs.

Reproduces: no number is published that we know of.
The norm and bound of the published adversary are not known: none here (model.adversary_norm,
model.adversary_epsilon).
Cost: not measured. The reference used one machine of 8 V100 (32 GB), accumulating 4 steps, or 4 of them.
Command: tools/dist_train.sh configs/pretrain/adpe_rpe_coordinate_vitb_400e.py 8
"""

_base_ = "../_base_/pretrain_400e.py"

model = dict(model="adpe_vit_base_patch16", position="relative", adversary="coordinate")
record = dict(method="AdPE RPE coordinate")
