"""DINO, two crops of 32 pixels and four of 16 per image, ViT-Tiny on CIFAR-10.

Reproduces: no published number; the recipe is configs/_base_/pretraining/dino.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/self_distillation/cifar10_dino.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/dino_cifar10.py"

model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="dino",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    drop_path_rate=0.1,
    prototypes=1024,
    hidden=512,
    bottleneck=128,
)
record = dict(method="DINO")
