"""MAE, one crop of 112 pixels per image, ViT-Tiny on small photographs.

Reproduces: no published number; the recipe is _base_/pretraining/photos112.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/photos112_mae.py --cfg-options data_root=FOLDER
"""

_base_ = "../_base_/pretraining/photos112.py"

model = dict(mask_tokens="decoder")
train_dataloader = dict(dataset=dict(crops=dict(size=112, num_crops=1)))
record = dict(method="MAE")
