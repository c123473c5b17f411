"""Saliency-guided attention (ours, after SGT) on CIFAR-10: the encoder and recipe of configs/cifar10/finetune.py.

Reproduces: no published number. A quarter of the 64 patches attend to each other until the last of 4 blocks x 64, in
training and at test; images are 32 px, so that spectral residual has one cell a pixel. The head is on the mean of the
patch tokens, as in configs/cifar10/finetune.py, and not on the class token as in EG-ViT, so that the attention alone
differs. The controls that belong beside it are chooser=centre and chooser=random.
Cost: not measured.
Command: python tools/train.py configs/backbones/cifar10_saliency.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../cifar10/finetune.py"

chooser = "spectral_residual"
model = dict(embed_dim=64, depth=4, num_heads=2, saliency=dict(type=chooser, ratio=0.25, residual_before=-1))
