"""The AdPE repository's schedule on COCO: batch 32, 400,000 iterations, ViTDet's learning rate x 0.5 (its README).

It lengthens ViTDet's schedule by command line, which stretches everything that detectron2 keeps as a share of the
length: the steps to 8/9 and 26/27 of 400,000, and the 250 iterations of warm-up to 542.
"""

max_iters = 400000
effective_batch = 32
lr = 5e-5
optim_wrapper = dict(
    type="AdPEAutocastOptimWrapper",
    constructor="AdPELayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.1, fused=True),
    paramwise_cfg=dict(layer_decay_rate=0.7, compat="detectron2"),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=round(250 / 184375 * max_iters), by_epoch=False),
    dict(
        type="MultiStepLR", gamma=0.1, milestones=[round(max_iters * 8 / 9), round(max_iters * 26 / 27)], by_epoch=False
    ),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 10)
