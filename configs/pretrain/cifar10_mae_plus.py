"""MAE+, without an adversary, ViT-Tiny on CIFAR-10.

Options: position=absolute|relative.
Reproduces: no published number; the recipe is _base_/pretraining/cifar10.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/cifar10_mae_plus.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretraining/cifar10.py"
