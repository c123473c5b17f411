"""MFM, one crop of 32 pixels per image, ViT-Tiny on CIFAR-10: the radius follows the crop, 16 / 224 of its side.

Reproduces: no published number; the recipe is configs/pretrain/targets/mfm_vitb_300e.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/targets/cifar10_mfm.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

model = dict(_delete_=True, type="AdPEPretraining", method="mfm", model="adpe_vit_tiny_patch4", img_size=32)
train_dataloader = dict(dataset=dict(crops=dict(size=32, num_crops=1)))
optim_wrapper = dict(clip_grad=dict(max_norm=3.0), paramwise_cfg=dict(_delete_=True))
record = dict(method="MFM")
