"""UperNet on ADE20K with GC ViT-tiny (arXiv 2206.09959), 160k iterations at 512 px, windows of 24 as in its detectors.

Reproduces: no published number: the authors' repository has no configuration for ADE20K. The recipe is
configs/ade20k_upernet_vitb.py with another backbone, without the neck: the backbone has strides 4 to 32.
Cost: not measured.
Command: tools/dist_train.sh configs/backbones/ade20k_upernet_gcvit_tiny.py 8 --cfg-options pretrained=CHECKPOINT
"""

_base_ = "../ade20k_upernet_vitb.py"

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type="AdPEGCViT",
        variant="tiny",
        init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
    ),
    neck=None,
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
record = dict(method="GC ViT" if pretrained else "random", start="pretrained" if pretrained else "random")
