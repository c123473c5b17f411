"""SD-MoCo v3, two crops of 24 pixels per image, ViT-Tiny on CIFAR-10.

Options: self_distillation=False is MoCo v3 itself. configs/cifar10/knn_layers.py compares the layers of both.
Reproduces: no published number; the recipe is configs/pretrain/self_distillation/sdssl_moco_vitb_300e.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/self_distillation/cifar10_sdssl_moco.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/sdssl_cifar10.py"

base = "moco"
