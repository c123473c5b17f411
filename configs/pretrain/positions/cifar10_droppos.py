"""DropPos, four crops of 24 pixels per image, ViT-Tiny on CIFAR-10: 9 of 36 patches seen, 2 of them with their place.

Reproduces: no published number; the recipe is configs/pretrain/positions/droppos_vitb_800e.py scaled down, with targets
that add up to 1. `img_size` is that of the crops, whose places are the classes.
Cost: not measured.
Command: python tools/train.py configs/pretrain/positions/cifar10_droppos.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="droppos",
    model="adpe_vit_tiny_patch4",
    img_size=24,
    decoder_embed_dim=192,
    decoder_depth=2,
    decoder_num_heads=3,
)
optim_wrapper = dict(clip_grad=dict(type="each", max_norm=5.0), paramwise_cfg=dict(_delete_=True))
record = dict(method="DropPos")
