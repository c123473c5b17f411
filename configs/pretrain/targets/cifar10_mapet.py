"""MaPeT, one crop of 32 pixels per image, ViT-Tiny on CIFAR-10: 17 of 65 tokens are context.

Tokens are those of k-means on an encoder that configs/pretrain/cifar10_mae.py made, whose training is part of the cost.
They are found on the crop, so that crops and flips are allowed, which the published recipe has not.
Reproduces: no published number; the recipe is configs/pretrain/targets/mapet_vitb_300e.py scaled down.
Cost: not measured.
Tokens: python tools/make_centroids.py ENCODER ARCHIVE --split train --count 64 --out FILE
Command: python tools/train.py configs/pretrain/targets/cifar10_mapet.py --cfg-options data_root=ARCHIVE tokenizer=FILE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

tokenizer = None
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="mapet",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    tokenizer=tokenizer,
    vocabulary=64,
)
train_dataloader = dict(dataset=dict(crops=dict(size=32, num_crops=1)))
optim_wrapper = dict(
    optimizer=dict(betas=(0.9, 0.999)), clip_grad=dict(max_norm=3.0), paramwise_cfg=dict(_delete_=True)
)
record = dict(method="MaPeT")
