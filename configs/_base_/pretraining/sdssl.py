"""The pretraining recipe of SDSSL (arXiv 2111.12958): MoCo v3, BYOL or SimCLR, earlier layers taught by the last.

Two crops of 224 pixels in colours of their own; AdamW, the rate rises over 40 of 300 epochs and falls by half a cosine
to 0, weight decay 0.1, no clipping, float32. The weight of the earlier layers rises from 0 over the whole training.
The number of GPUs is not published: 8 of 128 images are ours. BatchNorms are synchronised over GPUs; on CPUs each
process has its own. Crops are flipped before their colours change instead of after, which gives the same pictures.
"""

_base_ = "../pretrain.py"

base = "moco"  # or "byol", "simclr"
self_distillation = True
epochs = 300
warmup_epochs = 40
effective_batch = 1024
ratio = 1.0 if base == "moco" else 0.8
lr = (1.3e-4 if base == "simclr" else 1.5e-4) * effective_batch / 256
sync_bn = "torch"
jitter = dict(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, radius=(0.1, 2.0))
colors = [dict(blur_p=1.0, **jitter), dict(blur_p=0.1, solarize_p=0.2, **jitter)]
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="sdssl",
    model="adpe_vit_base_patch16",
    base=base,
    self_distillation=self_distillation,
    ratio=ratio,
    out_dim=256,
    hidden=4096,
    temperature=0.2,
    momentum=0.996,
)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(crops=dict(size=224, num_crops=2, scale=(0.08, 1.0), interpolation="bilinear", color=colors)),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=lr, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(_delete_=True),
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="warmup_cosine",
        total=epochs,
        warmup=warmup_epochs,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(by_epoch=True, max_epochs=epochs)
record = dict(
    method=("SD-" if self_distillation else "")
    + ("MoCo v3" if base == "moco" else "BYOL" if base == "byol" else "SimCLR")
)
