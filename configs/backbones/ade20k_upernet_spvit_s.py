"""UperNet on ADE20K with SP-ViT-S (arXiv 2206.07662), 160k iterations at 512 px; maps of every fourth of its 16 blocks.

Reproduces: no published number as it stands: the authors report 49.0 mIoU (49.8 multi-scale) with UperNet at 512 px and
160k iterations (README of ZhouYuxuanYX/SP-ViT), without code for it. The recipe is that of
configs/ade20k_upernet_vitb.py, with heads of 512 channels; a checkpoint of 384 px needs model.backbone.img_size=384.
Cost: not measured.
Command: tools/dist_train.sh configs/backbones/ade20k_upernet_spvit_s.py 8 --cfg-options pretrained=CHECKPOINT
"""

_base_ = "../ade20k_upernet_vitb.py"

pretrained = None
model = dict(
    backbone=dict(
        _delete_=True,
        type="AdPESPViT",
        variant="small",
        out_indices=(3, 7, 11, 15),
        init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
    ),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384] * 4, channels=512),
    auxiliary_head=dict(in_channels=384),
)
record = dict(method="SP-ViT" if pretrained else "random", start="pretrained" if pretrained else "random")
