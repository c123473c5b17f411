"""Boxes on the demo's scenes from a frozen encoder: batch norm and 1x1 layers at every patch, with FCOS's losses.

Reproduces: no published number; a protocol of this project, the counterpart of configs/demo/linear_segmentation.py.
Cost: about a minute on one CPU core.
Command: python tools/train.py configs/demo/linear_detection.py --cfg-options data_root=DATA pretrained=CHECKPOINT
"""

_base_ = "./detection.py"

custom_imports = dict(
    imports=["adpe.engine", "adpe.data.detection", "adpe.transfer.linear_detection_head"],
    allow_failed_imports=False,
)
blocks = "four_last"
embed_dim = 64
patch_size = 8
num_classes = 3
image_size = 48
max_iters = 400
lr = 5e-3
num_maps = 1 if blocks == "last" else 4
model = dict(
    _delete_=True,
    type="FCOS",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
    backbone=dict(
        type="AdPEViT",
        out_indices=blocks,
        final_norm="every",
        frozen_stages="all",
        init_cfg=_base_.initialisation,
        **_base_.encoder,
    ),
    neck=dict(type="AdPEJoinMaps"),
    bbox_head=dict(
        type="AdPELinearDetectionHead",
        num_classes=num_classes,
        in_channels=embed_dim * num_maps,
        stride=patch_size,
        center_sampling=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=None,
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(4 * image_size, image_size), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(4 * image_size, image_size), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
effective_batch = 32
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    # The frozen encoder is left out; norm and biases decay too.
    constructor="AdPELayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=1.0, compat="all"),
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=1e-3, fused=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="probe_cosine",
        total=max_iters,
        warmup=max(1, max_iters // 20),
        first=1e-6,
        lag=1,
        by_epoch=False,
    )
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
