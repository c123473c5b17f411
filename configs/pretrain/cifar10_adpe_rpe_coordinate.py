"""AdPE, relative positions, coordinate adversary, ViT-Tiny on CIFAR-10.

Reproduces: no published number; the recipe is _base_/pretrain_cifar10.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/cifar10_adpe_rpe_coordinate.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretrain_cifar10.py"

model = dict(position="relative", adversary="coordinate")
record = dict(method="AdPE RPE coordinate")
