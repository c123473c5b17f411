"""EoMT on the demo's scenes: 20 queries in the last two blocks of the small encoder.

Reproduces: no published number. It is configs/dense/ade20k_eomt_vitb.py at the size of a laptop: fewer queries, points
and steps, gradients clipped at 1 and no layer-wise decay, so that it learns in so few.
Cost: about two minutes on one CPU core.
Command: python tools/train.py configs/demo/eomt.py --cfg-options data_root=DATA pretrained=CHECKPOINT
"""

_base_ = "./segmentation.py"

custom_imports = dict(
    imports=[
        "adpe.engine",
        "adpe.data.segmentation",
        "adpe.transfer.eomt.segmentor",
        "adpe.transfer.eomt.transforms",
    ],
    allow_failed_imports=False,
)
num_classes = 4
crop_size = (48, 48)
max_iters = 400
effective_batch = 8
lr = 1e-3
model = dict(
    _delete_=True,
    type="AdPEEoMT",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(type="AdPEViT", init_cfg=_base_.initialisation, **_base_.encoder),
    num_classes=num_classes,
    num_queries=20,
    joined_blocks=2,
    window=crop_size,
    criterion=dict(num_points=112),
)
train_pipeline = [
    dict(type="LoadImageFromFile", on_corrupt="skip"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="AdPEEoMTCrop", crop_size=crop_size, ratio_range=(0.9, 1.3)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="AdPEEoMTFit", window=crop_size),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="AdPEEoMTOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(
        type="AdPETwoStageScheduler",
        total=max_iters,
        warmup=max_iters // 20,
        encoder_warmup=max_iters // 20,
        power=0.9,
        by_epoch=False,
    )
]
custom_hooks = [
    dict(
        type="AdPEMaskAnnealingHook",
        starts=[max_iters // 4, max_iters // 2],
        ends=[max_iters // 2, max_iters * 3 // 4],
        power=0.9,
    )
]
