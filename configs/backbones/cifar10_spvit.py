"""A small SP-ViT on CIFAR-10 from random weights, under the recipe of configs/cifar10/finetune.py.

Reproduces: no published number. The network is SP-ViT's with 4 blocks x 64 on patches of 4 pixels, a spatial prior in
the first three, a stem of 16 channels. Layer decay goes by the network's own depths.
Cost: not measured.
Command: python tools/train.py configs/backbones/cifar10_spvit.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../cifar10/finetune.py"

model = dict(
    _delete_=True,
    type="AdPENetworkClassifier",
    network="spvit",
    variant=None,
    img_size=_base_.image_size,
    patch_size=4,
    embed_dim=64,
    depth=4,
    num_heads=2,
    prior_blocks=3,
    skip_lam=2.0,
    stem=16,
    drop_path_rate=_base_.model.drop_path_rate,
    num_classes=_base_.num_classes,
    label_smoothing=_base_.model.label_smoothing,
    mixup=_base_.model.mixup,
    init_cfg=_base_.model.init_cfg,
)
record = dict(method="SP-ViT")
