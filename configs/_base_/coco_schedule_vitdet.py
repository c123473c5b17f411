"""ViTDet's schedule on COCO: 100 epochs of batch 64, AdamW, steps at 8/9 and 26/27 (detectron2 projects/ViTDet)."""

max_iters = 184375
warmup_iters = 250
effective_batch = 64
lr = 1e-4
optim_wrapper = dict(
    type="AdPEAutocastOptimWrapper",
    constructor="AdPELayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.1, fused=True),
    paramwise_cfg=dict(layer_decay_rate=0.7, compat="detectron2"),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=warmup_iters, by_epoch=False),
    dict(
        type="MultiStepLR", gamma=0.1, milestones=[round(max_iters * 8 / 9), round(max_iters * 26 / 27)], by_epoch=False
    ),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 10)
