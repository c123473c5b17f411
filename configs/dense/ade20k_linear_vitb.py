"""Linear segmentation on ADE20K with a frozen ViT-B: batch norm and one 1x1 layer, 40,000 iterations of batch 16.

Reproduces: the protocol of DINOv3 (arXiv 2508.10104; its model card gives 51.8 mIoU for its ViT-B), whose head,
schedule, augmentation and sliding window are in adpe/evaluations/. MAE has no published number in it.
blocks: "last" (published), "four_last" or "four_even" (--cfg-options blocks=four_even), each through the final norm.
Differs: mmseg pads windows to whole patches where the reference cuts them off; at 512 pixels both are the same.
Cost: not measured.
Command: tools/dist_train.sh configs/dense/ade20k_linear_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/ade20k_upernet.py"

custom_imports = dict(
    imports=[
        "adpe.engine",
        "adpe.data.segmentation",
        "adpe.transfer.linear_segmentation_head",
        "adpe.data.views.probe_transforms",
    ],
    allow_failed_imports=False,
)
blocks = "last"
embed_dim = 768
crop_size = (512, 512)
num_classes = 150
max_iters = 40000
warmup_iters = 1500
effective_batch = 16
lr = 1e-3
num_maps = 1 if blocks == "last" else 4
model = dict(
    backbone=dict(
        out_indices=blocks,
        final_norm="every",
        frozen_stages="all",
        drop_path_rate=0.0,
        relative_query=None,
    ),
    neck=dict(_delete_=True, type="AdPEJoinMaps"),
    decode_head=dict(
        _delete_=True,
        type="AdPELinearSegmentationHead",
        in_channels=embed_dim * num_maps,
        num_classes=num_classes,
        dropout_ratio=0.1,
        norm_cfg=dict(type="SyncBN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=_base_.reduce_zero_label),
    dict(type="AdPEProbeResize", short=_base_.short_side, ratio_range=(0.5, 2.0)),
    dict(type="AdPEProbeCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(type="AdPEProbeDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="AdPEProbeResize", short=_base_.short_side),
    dict(type="LoadAnnotations", reduce_zero_label=_base_.reduce_zero_label),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    # The frozen encoder is left out; norm and biases decay too.
    constructor="AdPELayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=1.0, compat="all"),
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=1e-3, fused=True),
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="probe_cosine",
        total=max_iters,
        warmup=warmup_iters,
        first=1e-6,
        lag=1,
        by_epoch=False,
    )
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters // 4))
