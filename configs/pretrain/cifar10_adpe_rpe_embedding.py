"""AdPE, relative positions, embedding adversary, ViT-Tiny on CIFAR-10.

Reproduces: no published number; the recipe is _base_/pretrain_cifar10.py, the published one scaled down.
Unlike the reference's adversary, which the softmax does not see, this one acts: it perturbs the keys of masked
patches. The reference's is model.adversary_variant=reference.
Cost: not measured.
Command: python tools/train.py configs/pretrain/cifar10_adpe_rpe_embedding.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretrain_cifar10.py"

model = dict(position="relative", adversary="embedding")
record = dict(method="AdPE RPE embedding")
