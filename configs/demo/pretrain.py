"""A small AdPE, pretrained on a CPU in minutes: the first link of `make demo`.

Reproduces: no published number. It is the recipe of configs/pretrain/ at the size of a laptop: MAE+ with the coordinate
adversary on absolute positions (arXiv 2303.07598), in bfloat16 or float32, as is measured to be faster at start. Four
things differ, for the budget:
one crop of the scene instead of four of a quarter (not mirrored: digits are not symmetric), 0.4 of the patches hidden
instead of 0.75 (the loss trains an encoder of four blocks at the hidden patches only, while a transfer uses the visible
ones), pixels that are not normalised per patch (the dimmed photographs would take most of the loss), and a decoder of
one block.
Cost: about 6 minutes on one CPU core.
Command: python tools/train.py configs/demo/pretrain.py --cfg-options sources=IMAGES
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_encoder.py"]

sources = "work_dirs/demo/data/unlabelled"
epochs = 40
crop_size = 48
num_crops = 1
precision = "auto"
lr = 3e-3
adversary_lr = 1e-3
model = dict(
    type="AdPEPretraining",
    adversary="coordinate",
    adversary_norm=None,
    adversary_epsilon=None,
    mask_ratio=0.4,
    norm_pix_loss=False,
    decoder_embed_dim=48,
    decoder_depth=1,
    decoder_num_heads=3,
    **_base_.encoder,
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="AdPEImageDataset",
        source=sources,
        crops=dict(size=crop_size, num_crops=num_crops, scale=(0.5, 1.0), hflip=0.0, normalize="device"),
        seed=_base_.seed,
    ),
)
effective_batch = 64
optim_wrapper = dict(
    constructor="AdPEPretrainingConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(adversary_lr=adversary_lr),
)
warmup_epochs = max(1, epochs // 20) if epochs > 1 else 0.5
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=warmup_epochs,
        end=epochs,
        T_max=epochs - warmup_epochs,
        eta_min=0.0,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=epochs)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10, max_keep_ckpts=2))
custom_hooks = [
    dict(type="AdPEEpochHook"),
    dict(type="AdPEVisualizationHook", interval=10),
    dict(type="AdPEExportHook"),
]
record = dict(method="AdPE", task="pretrain", dataset="embedded_scenes")
