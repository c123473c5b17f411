"""The whole small encoder fine-tuned under one linear layer, on the demo's scenes.

Reproduces: no published number. It is configs/dense/ade20k_linear_finetune_vitb.py at the size of a laptop, with one
learning rate for all, so that it learns in few steps.
Cost: about a minute on one CPU core.
Command: python tools/train.py configs/demo/linear_finetune.py --cfg-options data_root=DATA pretrained=CHECKPOINT
"""

_base_ = "./segmentation.py"

num_classes = 4
embed_dim = 64
max_iters = 300
lr = 2e-3
model = dict(
    backbone=dict(out_indices=(-1,), final_norm=True),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=embed_dim,
        channels=embed_dim,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=num_classes,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
