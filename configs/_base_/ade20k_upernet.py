"""UperNet on ADE20K in the recipe of MAE (mmseg's configs/mae), ViT-B: data, heads, schedule, real mixed precision.

The absolute positions are those of pretraining, resized bicubically without antialias to the crop's patches when they
are loaded and trained from there, as in mmseg's and implus's MAE (--cfg-options model.backbone.pos_embed_resize=
recompute makes a sine-cosine table for the crop instead; model.backbone.learned_pos_embed=False keeps the table fixed,
as CAE does). Relative tables meet the unscaled query, as in the AdPE repository's encoder for fine-tuning.
"""

_base_ = "./runtime.py"

default_scope = "mmseg"
custom_imports = dict(imports=["adpe.engine", "adpe.data.segmentation"], allow_failed_imports=False)
data_root = "data/ade/ADEChallengeData2016"
pretrained = None
# Kind of positions: what the checkpoint says of itself; one that contradicts it is refused.
position = None
crop_size = (512, 512)
short_side = 512
num_classes = 150
# Label 0 is unlabelled and label i + 1 is class i. Data sets whose label 0 is a class say False.
reduce_zero_label = True
max_iters = 160000
effective_batch = 16
lr = 2e-4
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type="AdPEViT",
        model="adpe_vit_base_patch16",
        img_size=crop_size,
        position=position,
        learned_pos_embed=True,
        relative_query="unscaled",
        out_indices=(3, 5, 7, 11),
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
    ),
    neck=dict(type="Feature2Pyramid", embed_dim=768, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type="UPerHead",
        in_channels=[768] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
train_pipeline = [
    dict(type="LoadImageFromFile", on_corrupt="skip"),
    dict(type="LoadAnnotations", reduce_zero_label=reduce_zero_label),
    dict(type="RandomResize", scale=(4 * short_side, short_side), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
# The annotation is loaded after the image is resized: it is compared at its own size.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(4 * short_side, short_side), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=reduce_zero_label),
    dict(type="PackSegInputs"),
]
# tools/test.py --tta: six short sides, each image as it is and mirrored, the window sliding in every one. As in the
# multi-scale tests of BEiT and MAE (SETR_Resize in microsoft/unilm beit/semantic_segmentation, min_size in mmseg 0.x),
# no side is shorter than the window: 512, 512, 512, 640, 768, 896, however long the other side is. mmseg 1.x takes the
# ratios of the image's own size.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="ResizeShortestEdge", scale=max(min(crop_size), int(short_side * ratio)), max_size=10**6)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="LoadAnnotations", reduce_zero_label=reduce_zero_label)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
tta_model = dict(type="AdPESegmentationTTA")
# batch_size: the most images a GPU holds at once. On 8 GPUs each has 2 and SyncBN sees all 16; with fewer, gradients
# are accumulated and BatchNorm sees fewer.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="AdPEADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="AdPEADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="AdPEAutocastOptimWrapper",
    constructor="AdPELayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(layer_decay_rate=0.65, compat="clean"),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1500, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=max_iters // 40))
log_processor = dict(by_epoch=False)
visualizer = dict(type="SegLocalVisualizer")
# method: None takes the name from the checkpoint.
record = dict(
    method=None if pretrained else "random",
    task="segmentation",
    dataset="ADE20K",
    start="pretrained" if pretrained else "random",
)
