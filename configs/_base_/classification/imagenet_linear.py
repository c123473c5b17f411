"""MAE's linear probe on ImageNet (arXiv 2111.06377, table 10; facebookresearch/mae FINETUNE.md, main_linprobe.py)."""

_base_ = ["./imagenet_classification.py", "../warmup_cosine.py"]

epochs = 90
warmup_epochs = 10
effective_batch = 16384
blr = 0.1
lr = blr * effective_batch / 256
model = dict(
    type="AdPEClassifier", num_classes=_base_.num_classes, frozen=True, global_pool="token", head_init_std=0.01
)
# batch_size: the most images a GPU holds at once. The head's BatchNorm sees these: 512, as on each of MAE's 32 GPUs;
# fewer from 64 GPUs on.
train_dataloader = dict(
    batch_size=512,
    dataset=dict(
        transform=dict(
            input_size=_base_.image_size, is_training=True, color_jitter=None, hflip=0.5, interpolation="bicubic"
        )
    ),
)
optim_wrapper = dict(
    type="AdPEAutocastOptimWrapper",
    constructor="AdPELarsOptimWrapperConstructor",
    optimizer=dict(type="AdPELars", lr=lr, momentum=0.9, weight_decay=0.0, trust_coeff=0.001),
)
# The statistics of the BatchNorm are averaged over processes, which would each evaluate with their own.
custom_hooks = [dict(type="SyncBuffersHook")]
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=max(1, epochs // 10))
