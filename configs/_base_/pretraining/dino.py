"""The pretraining recipe of DINO (arXiv 2104.14294) as SelfPatch's repository has it: crops, colours, optimiser.

Two crops of 224 pixels and eight of 96; colours jittered, grey, blurred and solarised; AdamW with a rate that rises
over 10 epochs and falls by half a cosine to 1e-6, weight decay from 0.04 to 0.4 by another; each tensor's gradient is
clipped by itself. Momentum and temperature of the teacher are the method's own.
"""

_base_ = "../pretrain.py"

epochs = 300
warmup_epochs = 10
effective_batch = 1024
lr = 5e-4 * effective_batch / 256
min_lr = 1e-6
weight_decay = 0.04
weight_decay_end = 0.4
jitter = dict(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, radius=(0.1, 2.0))
global_colors = [dict(blur_p=1.0, **jitter), dict(blur_p=0.1, solarize_p=0.2, **jitter)]
local_colors = dict(blur_p=0.5, **jitter)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        crops=[
            dict(size=224, num_crops=2, scale=(0.25, 1.0), normalize="device", color=global_colors),
            dict(size=96, num_crops=8, scale=(0.05, 0.25), normalize="device", color=local_colors),
        ],
    ),
)
optim_wrapper = dict(
    clip_grad=dict(type="each", max_norm=3.0),
    optimizer=dict(lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay),
    paramwise_cfg=dict(_delete_=True),
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="warmup_cosine",
        total=epochs,
        warmup=warmup_epochs,
        last=min_lr / lr,
        convert_to_iter_based=True,
    ),
    dict(
        type="AdPEFormulaScheduler",
        formula="warmup_cosine",
        param_name="weight_decay",
        total=epochs,
        last=weight_decay_end / weight_decay,
        convert_to_iter_based=True,
    ),
]
