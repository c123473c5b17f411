"""The pretraining recipe of MAE+ and AdPE (arXiv 2303.07598 and the commands of its repository).

Four random resized crops of 112 pixels per image, 0.75 of the patches hidden, pixels normalised per patch; AdamW for
both players, the learning rate by images and not by crops, 1.5e-4 x images / 256: a linear warm-up from 0, then half a
cosine to 0, by iteration; bfloat16.
"""

_base_ = ["./runtime.py", "./warmup_cosine.py"]

data_root = "data/imagenet/train"
position = "absolute"  # or "relative"
adversary = None  # or "embedding", "coordinate"
epochs = 1600
warmup_epochs = 20 if epochs <= 400 else 40
effective_batch = 4096
lr = 1.5e-4 * effective_batch / 256
adversary_lr = 1.5e-4 * effective_batch / 256
model = dict(
    type="AdPEPretraining",
    model="adpe_vit_base_patch16",
    position=position,
    adversary=adversary,
    mask_ratio=0.75,
    norm_pix_loss=True,
    # The reference's defaults: the adversary is free. The paper's choice is in a table that is not public.
    adversary_norm=None,
    adversary_epsilon=None,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)
# batch_size: the most images a GPU holds at once (times 4 crops), as in the reference's commands.
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="AdPEImageDataset",
        source=data_root,
        crops=dict(size=112, num_crops=4, scale=(0.08, 1.0), interpolation="bicubic", hflip=0.5, normalize="device"),
        seed=_base_.seed,
    ),
)
optim_wrapper = dict(
    type="AdPEAutocastOptimWrapper",
    constructor="AdPEPretrainingConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(adversary_lr=adversary_lr),
)
train_cfg = dict(by_epoch=True, max_epochs=epochs)
# Epochs and mean losses of a published run, which ours are compared with (adpe/engine/hooks/expected_loss.py).
expected_loss = None
custom_hooks = [
    dict(type="AdPEEpochHook"),
    dict(type="AdPEVisualizationHook", interval=10),
    dict(type="AdPEExportHook"),
    *([dict(type="AdPEExpectedLossHook", curve=expected_loss)] if expected_loss else []),
]
record = dict(
    method=(
        f"AdPE {'APE' if position == 'absolute' else 'RPE'} {adversary}"
        if adversary
        else "MAE+"
        if position == "absolute"
        else "MAE+ RPE"
    ),
    task="pretrain",
    dataset="ImageNet-1k",
    start="random",
)
