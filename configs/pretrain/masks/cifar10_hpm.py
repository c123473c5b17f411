"""HPM, four crops of 24 pixels per image, ViT-Tiny on CIFAR-10: of 27 hidden patches up to 13 are the hardest.

Reproduces: no published number; the recipe is configs/pretrain/masks/hpm_vitb_200e.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/masks/cifar10_hpm.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="hpm",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    decoder_embed_dim=192,
    decoder_depth=4,
    decoder_num_heads=3,
)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
record = dict(method="HPM")
