"""CrossMAE, one crop of 32 pixels per image, ViT-Tiny on CIFAR-10.

Options: predicted_ratio=0.75|0.25.
Reproduces: no published number; the recipe is configs/pretrain/masks/crossmae_vitb_800e.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/masks/cifar10_crossmae.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

predicted_ratio = 0.75
lr = 1e-3 * predicted_ratio / 0.75
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="crossmae",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    predicted_ratio=predicted_ratio,
    decoder_embed_dim=192,
    decoder_depth=6,
    decoder_num_heads=3,
)
train_dataloader = dict(dataset=dict(crops=dict(size=32, num_crops=1)))
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(_delete_=True))
record = dict(method="CrossMAE")
