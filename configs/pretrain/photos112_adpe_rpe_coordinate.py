"""AdPE, relative positions, coordinate adversary, ViT-Tiny on small photographs.

Reproduces: no published number; the recipe is _base_/pretrain_photos112.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/photos112_adpe_rpe_coordinate.py --cfg-options data_root=FOLDER
"""

_base_ = "../_base_/pretrain_photos112.py"

model = dict(position="relative", adversary="coordinate")
record = dict(method="AdPE RPE coordinate")
