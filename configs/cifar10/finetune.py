"""Fine-tuning on CIFAR-10: ViT-Tiny on patches of 4 pixels, 100 epochs of batch 512.

Reproduces: no published number; the recipe is configs/imagenet/finetune_vitb.py scaled down. Changed: crops take at
least half of the image's area, layer decay 0.75, batch; bfloat16 or float32, as is measured to be faster at start.
Cost: not measured.
Command: python tools/train.py configs/cifar10/finetune.py --cfg-options data_root=ARCHIVE pretrained=CHECKPOINT
"""

_base_ = ["../_base_/classification/cifar10_classification.py", "../_base_/warmup_cosine.py"]

epochs = 100
warmup_epochs = 5
effective_batch = 512
precision = "auto"
blr = 5e-4
lr = blr * effective_batch / 256
model = dict(
    type="AdPEClassifier",
    num_classes=_base_.num_classes,
    global_pool="avg",
    learned_pos_embed=True,
    relative_query="unscaled",
    drop_path_rate=0.1,
    head_init_std=2e-5,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        transform=dict(
            input_size=_base_.image_size,
            is_training=True,
            scale=(0.5, 1.0),
            color_jitter=None,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
        )
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="AdPELayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(layer_decay_rate=0.75, compat="clean"),
)
final_lr = dict(_delete_=True, eta_min_ratio=1e-6 / lr)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=max(1, epochs // 10))
