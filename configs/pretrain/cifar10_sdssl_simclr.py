"""SD-SimCLR, two crops of 24 pixels per image, ViT-Tiny on CIFAR-10.

Options: self_distillation=False is SimCLR itself. configs/cifar10_knn_layers.py compares the layers of both.
Reproduces: no published number; the recipe is configs/pretrain/sdssl_simclr_vitb_300e.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/cifar10_sdssl_simclr.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretrain_sdssl_cifar10.py"

base = "simclr"
