"""ViTDet's Mask R-CNN on COCO (arXiv 2203.16527; detectron2 projects/ViTDet), ViT-B: model and data, 1024 x 1024.

The encoder is ViTDet's: windows of 14 patches but in the last block of each quarter, decomposed relative positions in
every block, no class token, and the absolute table of pretraining, trained at its own grid and resized in every forward
pass to 64 x 64 patches (bicubic, not antialiased). Relative positions of the method's own add up with these, at offsets
within the windows; their tables meet the unscaled query, as in the AdPE repository's encoder for fine-tuning, which has
no code for them in detection. The rest is detectron2's too: large-scale jitter of 0.1-2 with flip first and Pillow's
bilinear filter, padding with the mean to a square, pyramid and heads with channel LayerNorm of eps 1e-6, 2 convolutions
in the RPN, an anchor for every object however small (min_pos_iou 0), 4conv1fc box head, no low-quality matches in the
box head, mask targets drawn from polygons, and the initialisation of all heads.
Differs from detectron2: an image whose annotations hold the RLE mask of a single object, which detectron2 refuses, has
bitmaps; mask targets of proposals under a pixel in width or height are drawn as if they had one (mmdet).
"""

_base_ = "./runtime.py"

default_scope = "mmdet"
custom_imports = dict(
    imports=["adpe.engine", "adpe.transfer.detection_heads", "adpe.transfer.instance_masks", "adpe.data.detection"],
    allow_failed_imports=False,
)
data_root = "data/coco"
pretrained = None
# Kind of positions: what the checkpoint says of itself; one that contradicts it is refused.
position = None
# Pixels whose absolute table the encoder knows from pretraining: 224 of MAE, 112 of AdPE, as the checkpoint says.
pretrain_img_size = None
image_size = (1024, 1024)
num_classes = 80
# What is done about wrong annotations: strict, repair or report (adpe/data/checks/coco.py).
label_policy = "repair"
norm_cfg = dict(type="AdPELayerNorm2d", eps=1e-6)
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=max(image_size),
    ),
    backbone=dict(
        type="AdPEViT",
        model="adpe_vit_base_patch16",
        img_size=image_size,
        position=position,
        learned_pos_embed="pretraining",
        relative_query="unscaled",
        pretrain_img_size=pretrain_img_size,
        class_token=False,
        window_size=14,
        global_attn_indexes=(2, 5, 8, 11),
        use_rel_pos=True,
        out_indices=(-1,),
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, allow_missing=["blocks.*.attn.rel_pos_[hw]"])
        if pretrained
        else None,
    ),
    neck=dict(
        type="AdPESimpleFeaturePyramid", in_channels=768, out_channels=256, scales=(4.0, 2.0, 1.0, 0.5), num_outs=5
    ),
    rpn_head=dict(
        type="AdPERPNHead",
        in_channels=256,
        feat_channels=256,
        num_convs=2,
        anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type="AdPEBoxHead",
            in_channels=256,
            conv_out_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type="AdPEMaskHead",
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="AdPEAnchorAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.0, match_low_quality=True
            ),
            sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False
            ),
            sampler=dict(type="RandomSampler", num=512, pos_fraction=0.25, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile", on_corrupt="skip"),
    dict(type="AdPELoadInstances"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True, backend="pillow"),
    dict(type="RandomCrop", crop_size=image_size, recompute_bbox=True, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
# batch_size: the most images a GPU holds at once.
train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="AdPECocoDataset",
        label_policy=label_policy,
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="AdPECocoDataset",
        label_policy=label_policy,
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="AdPECocoMetric",
    label_policy=label_policy,
    ann_file=data_root + "/annotations/instances_val2017.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
visualizer = dict(type="DetLocalVisualizer")
# method: None takes the name from the checkpoint.
record = dict(
    method=None if pretrained else "random",
    task="detection",
    dataset="COCO",
    start="pretrained" if pretrained else "random",
)
