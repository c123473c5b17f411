"""MAE's fine-tuning on ImageNet, ViT-B (facebookresearch/mae FINETUNE.md and main_finetune.py).

The table of absolute positions is trained, from that of pretraining on (MAE, AdPE); relative tables meet the unscaled
query, as in the AdPE repository's encoder for fine-tuning.
"""

_base_ = ["./imagenet_classification.py", "../warmup_cosine.py"]

epochs = 100
warmup_epochs = 5
effective_batch = 1024
blr = 5e-4
lr = blr * effective_batch / 256
# Images that share a draw of mixup and cutmix: those of one GPU in MAE's commands.
mixup_batch = 32
model = dict(
    type="AdPEClassifier",
    num_classes=_base_.num_classes,
    global_pool="avg",
    learned_pos_embed=True,
    relative_query="unscaled",
    drop_path_rate=0.1,
    head_init_std=2e-5,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    mixup_batch=mixup_batch,
)
# batch_size: the most images a GPU holds at once.
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        transform=dict(
            input_size=_base_.image_size,
            is_training=True,
            color_jitter=None,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
        )
    ),
)
optim_wrapper = dict(
    type="AdPEAutocastOptimWrapper",
    constructor="AdPELayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(layer_decay_rate=0.65, compat="clean"),
)
# The minimum of 1e-6 is that of the full rate; layers with less end at the same share of theirs.
final_lr = dict(_delete_=True, eta_min_ratio=1e-6 / lr)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=max(1, epochs // 10))
