"""A small GC ViT on CIFAR-10 from random weights, under the recipe of configs/cifar10/finetune.py.

Reproduces: no published number. The network is GC ViT's with 2, 2, 4 and 2 blocks, local and global ones in turn, of 32
to 256 channels: a step takes about as long as one of ViT with 4 blocks x 64. Maps have 8, 4, 2 and 1 positions a side,
so that from the second stage on one window is the whole map. Layer decay goes by the network's own depths.
Cost: not measured.
Command: python tools/train.py configs/backbones/cifar10_gcvit.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../cifar10/finetune.py"

model = dict(
    _delete_=True,
    type="AdPENetworkClassifier",
    network="gcvit",
    variant=None,
    dim=32,
    depths=(2, 2, 4, 2),
    heads=(1, 2, 4, 8),
    window_size=(4, 4, 2, 1),
    drop_path_rate=_base_.model.drop_path_rate,
    num_classes=_base_.num_classes,
    label_smoothing=_base_.model.label_smoothing,
    mixup=_base_.model.mixup,
    init_cfg=_base_.model.init_cfg,
)
record = dict(method="GC ViT")
