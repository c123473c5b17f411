"""The small encoder under UperNet: the segmentation link of `make demo`, from a pretrained encoder or random weights.

Reproduces: no published number. It is configs/ade20k_upernet_vitb.py at the size of a laptop: same head, losses and
layout of data. No layer-wise decay, so that both starts train under one recipe, and a pyramid that begins at stride 4,
for the budget.
Cost: about 1 minute on one CPU core.
Command: python tools/train.py configs/demo/segmentation.py --cfg-options data_root=DATA pretrained=CHECKPOINT
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_transfer.py"]

default_scope = "mmseg"
custom_imports = dict(imports=["adpe.engine", "adpe.data.segmentation"], allow_failed_imports=False)
num_classes = 4
image_size = 48
crop_size = 48
max_iters = 400
lr = 4e-3
head_lr_mult = 2.5
width = 64
norm_cfg = dict(type="BN")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=16,
        test_cfg=dict(size_divisor=16),
    ),
    backbone=dict(type="AdPEViT", out_indices=(0, 1, 2, 3), init_cfg=_base_.initialisation, **_base_.encoder),
    neck=dict(type="Feature2Pyramid", embed_dim=width, rescales=[2, 1, 0.5, 0.25], norm_cfg=norm_cfg),
    decode_head=dict(
        type="UPerHead",
        in_channels=[width] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=32,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=width,
        in_index=2,
        channels=32,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
train_pipeline = [
    dict(type="LoadImageFromFile", on_corrupt="skip"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="Resize", scale=(4 * image_size, image_size), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(crop_size, crop_size), cat_max_ratio=0.95),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(4 * image_size, image_size), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="AdPESegmentationDataset",
        data_root=_base_.data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="AdPESegmentationDataset",
        data_root=_base_.data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
effective_batch = 32
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        # The heads' classifiers start at 0.01 and would need thousands of steps at the encoder's rate.
        custom_keys={name: dict(lr_mult=head_lr_mult) for name in ("neck", "decode_head", "auxiliary_head")},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=max(1, max_iters // 20), by_epoch=False),
    dict(type="PolyLR", power=1.0, begin=max(1, max_iters // 20), end=max_iters, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
visualizer = dict(type="SegLocalVisualizer")
record = dict(method=_base_.method, task="segmentation", dataset="embedded_scenes", start=_base_.start)
