"""AdPE, ViT-Tiny on CIFAR-10.

Options: position=absolute|relative, adversary=coordinate|embedding. The adversary on relative embeddings is cancelled
by the softmax in the reference; this one perturbs the keys of masked patches (model.adversary_variant=reference).
Reproduces: no published number; the recipe is _base_/pretraining/cifar10.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/cifar10_adpe.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretraining/cifar10.py"

adversary = "coordinate"
