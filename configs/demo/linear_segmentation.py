"""Linear segmentation on the demo's scenes: the frozen small encoder, batch norm and one 1x1 layer.

Reproduces: no published number. It is configs/dense/ade20k_linear_vitb.py at the size of a laptop, without
augmentation: the head learns what is linearly readable in the maps of all four blocks, each through the final norm.
Cost: about half a minute on one CPU core.
Command: python tools/train.py configs/demo/linear_segmentation.py --cfg-options data_root=DATA pretrained=CHECKPOINT
"""

_base_ = "./segmentation.py"

custom_imports = dict(
    imports=["adpe.engine", "adpe.data.segmentation", "adpe.transfer.linear_segmentation_head"],
    allow_failed_imports=False,
)
blocks = "four_last"
embed_dim = 64
num_classes = 4
max_iters = 400
lr = 1e-2
num_maps = 1 if blocks == "last" else 4
model = dict(
    backbone=dict(out_indices=blocks, final_norm="every", frozen_stages="all"),
    neck=dict(_delete_=True, type="AdPEJoinMaps"),
    decode_head=dict(
        _delete_=True,
        type="AdPELinearSegmentationHead",
        in_channels=embed_dim * num_maps,
        num_classes=num_classes,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
    auxiliary_head=None,
)
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
        warmup=max(1, max_iters // 20),
        first=1e-6,
        lag=1,
        by_epoch=False,
    )
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
