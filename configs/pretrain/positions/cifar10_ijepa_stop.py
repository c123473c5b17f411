"""I-JEPA with stochastic positions, one crop of 32 pixels per image, ViT-Tiny on CIFAR-10.

Options: position_noise_std=0.25 (None is I-JEPA without the noise).
Reproduces: no published number; the recipe is configs/pretrain/positions/ijepa_stop_vitb_600e.py scaled down, with the
learning rate of _base_/pretraining/cifar10.py.
Cost: not measured.
Command: python tools/train.py configs/pretrain/positions/cifar10_ijepa_stop.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

position_noise_std = 0.25
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="ijepa",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    predictor_embed_dim=96,
    predictor_depth=4,
    position_noise_std=position_noise_std,
)
train_dataloader = dict(dataset=dict(crops=dict(size=32, num_crops=1, scale=(0.3, 1.0), interpolation="bilinear")))
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999), weight_decay=0.04), paramwise_cfg=dict(_delete_=True))
record = dict(method="I-JEPA StoP" if position_noise_std else "I-JEPA")
