"""SemMAE, one crop of 32 pixels per image, ViT-Tiny on CIFAR-10; otherwise configs/pretrain/cifar10_mae.py.

Parts are those of k-means on an encoder that configs/pretrain/cifar10_mae.py made; its training is part of the cost.
Given maps instead: maps=FOLDER num_parts=K, see adpe/data/views/part_maps.py.
Reproduces: no published number; the recipe is configs/pretrain/masks/semmae_vitb_800e.py scaled down.
Cost: not measured.
Parts: python tools/make_centroids.py ENCODER ARCHIVE --split train --count 5 --out FILE
Command: python tools/train.py configs/pretrain/masks/cifar10_semmae.py --cfg-options data_root=ARCHIVE parts=FILE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

parts = None
maps = None
num_parts = None
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="semmae",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    parts=parts,
    num_parts=num_parts,
    decoder_embed_dim=192,
    decoder_depth=4,
    decoder_num_heads=3,
)
train_dataloader = dict(
    dataset=dict(crops=dict(size=32, num_crops=1), maps=dict(folder=maps, num_parts=num_parts) if maps else None)
)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
record = dict(method="SemMAE")
