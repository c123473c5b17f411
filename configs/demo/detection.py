"""The small encoder under Mask R-CNN: the detection link of `make demo`, from a pretrained encoder or random weights.

Reproduces: no published number. It is configs/coco_maskrcnn_vitb.py at the size of a laptop: simple feature pyramid,
Mask R-CNN, COCO's metrics, without layer-wise decay, so that both starts train under one recipe.
Cost: about 2 minutes on one CPU core.
Command: python tools/train.py configs/demo/detection.py --cfg-options data_root=DATA pretrained=CHECKPOINT
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_transfer.py"]

default_scope = "mmdet"
custom_imports = dict(imports=["adpe.engine", "adpe.data.detection"], allow_failed_imports=False)
num_classes = 3
# What is done about wrong annotations: strict, repair or report (adpe/data/checks/coco.py).
label_policy = "repair"
image_size = 48
crop_size = 48
max_iters = 300
lr = 2e-3
channels = 32
patch_size = 8
strides = [patch_size // 2, patch_size, 2 * patch_size]
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=16,
    ),
    backbone=dict(type="AdPEViT", out_indices=(3,), init_cfg=_base_.initialisation, **_base_.encoder),
    neck=dict(
        type="AdPESimpleFeaturePyramid", in_channels=64, out_channels=channels, scales=(2.0, 1.0, 0.5), num_outs=3
    ),
    rpn_head=dict(
        type="RPNHead",
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(type="AnchorGenerator", scales=[3, 5], ratios=[0.5, 1.0, 2.0], strides=strides),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=2 * patch_size,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=channels,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=num_classes,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=2),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=2 * patch_size,
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=128, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=500, max_per_img=200, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.25, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=200, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile", on_corrupt="skip"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(4 * image_size, image_size), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(crop_size, crop_size), allow_negative_crop=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(4 * image_size, image_size), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="AdPECocoDataset",
        label_policy=label_policy,
        data_root=_base_.data_root,
        ann_file="instances_training.json",
        data_prefix=dict(img="images/training"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="AdPECocoDataset",
        label_policy=label_policy,
        data_root=_base_.data_root,
        ann_file="instances_validation.json",
        data_prefix=dict(img="images/validation"),
        classes="instances_training.json",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="AdPECocoMetric",
    label_policy=label_policy,
    ann_file=_base_.data_root + "/instances_validation.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator
effective_batch = 8
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
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
visualizer = dict(type="DetLocalVisualizer")
record = dict(method=_base_.method, task="detection", dataset="embedded_scenes", start=_base_.start)
