"""UperNet with ViT-L on ADE20K, 512 x 512, 160k iterations of batch 16.

Reproduces: MAE 53.6 mIoU (its paper, as quoted by the CAE repository, whose config for MAE's ViT-L gives lr 4e-4,
layer decay 0.65, drop path 0.2); AdPE publishes no number for ViT-L.
Differs from that config: no BEiT-style relative bias, no LayerScale.
Cost: not measured.
Command: tools/dist_train.sh configs/ade20k_upernet_vitl.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "./_base_/ade20k_upernet.py"

lr = 4e-4
model = dict(
    backbone=dict(model="adpe_vit_large_patch16", out_indices=(7, 11, 15, 23), drop_path_rate=0.2),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=lr))
