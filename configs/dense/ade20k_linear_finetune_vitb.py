"""The whole ViT-B fine-tuned under one linear layer on ADE20K, 512 x 512, 40,000 iterations of batch 16.

Reproduces: the cheap protocol of "How to Benchmark Vision Foundation Models for Semantic Segmentation?" (arXiv
2404.12172; tue-mps/benchmark-vfm-ss), which ranks encoders as their fine-tuning under Mask2Former does, where a frozen
linear probe does not. AdamW 1e-4, the encoder at a tenth of it, weight decay 0.05 on every tensor, a polynomial of
power 0.9 from the first step, cross-entropy over labelled pixels, the augmentation of
configs/dense/ade20k_eomt_vitb.py.
Differs: windows slide by 341 pixels (published: the fewest that cover the image, evenly spread); bfloat16.
Cost: not measured.
Command: tools/dist_train.sh configs/dense/ade20k_linear_finetune_vitb.py 4 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/ade20k_upernet.py"

custom_imports = dict(
    imports=["adpe.engine", "adpe.data.segmentation", "adpe.transfer.eomt.transforms"], allow_failed_imports=False
)
crop_size = (512, 512)
embed_dim = 768
num_classes = 150
max_iters = 40000
effective_batch = 16
lr = 1e-4
encoder_lr_mult = 0.1
model = dict(
    backbone=dict(out_indices=(-1,), final_norm=True, drop_path_rate=0.0),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=embed_dim,
        channels=embed_dim,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=num_classes,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
    auxiliary_head=None,
)
train_pipeline = [
    dict(type="LoadImageFromFile", on_corrupt="skip"),
    dict(type="LoadAnnotations", reduce_zero_label=_base_.reduce_zero_label),
    dict(type="AdPEEoMTJitter"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="AdPEEoMTCrop", crop_size=crop_size, ratio_range=(0.5, 2.0)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="AdPEEoMTFit", window=crop_size),
    dict(type="LoadAnnotations", reduce_zero_label=_base_.reduce_zero_label),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(
    _delete_=True,
    type="AdPEAutocastOptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=encoder_lr_mult))),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
default_hooks = dict(checkpoint=dict(interval=max_iters // 4))
