"""MAE, one crop of 32 pixels per image, ViT-Tiny on CIFAR-10.

Reproduces: no published number; the recipe is _base_/pretraining/cifar10.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/cifar10_mae.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretraining/cifar10.py"

model = dict(mask_tokens="decoder")
train_dataloader = dict(dataset=dict(crops=dict(size=32, num_crops=1)))
record = dict(method="MAE")
