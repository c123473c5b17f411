"""CAPI's attentive probe on ImageNet: 120 heads on a frozen ViT-B at once, 12,500 steps of batch 1024.

Reproduces: the protocol of CAPI (arXiv 2502.08769); its own ViT-L/14 has top-1 82.9 with it, MAE's ViT-B none that was
found. Rate, weight decay and nothing else are chosen on a tenth of the training images; the test set is seen once.
Differs: batch 1024 in one process (published: 128 a process; the rate follows the whole batch).
Cost: not measured; 12.8 million images through the encoder, in one process.
Command: python tools/evaluate.py configs/imagenet/attentive_vitb.py ENCODER
"""

_base_ = "../_base_/classification/imagenet_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_base_patch16")
evaluation = dict(
    type="attentive_probe", iterations=12500, warmup=1250, batch_size=1024, final_norm=True, cached=False, split_seed=42
)
train_dataloader = dict(
    dataset=dict(
        transform=dict(
            input_size=_base_.image_size, is_training=True, color_jitter=None, hflip=0.5, interpolation="bicubic"
        )
    )
)
# The training images without augmentation: a tenth of them chooses among the heads.
select_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(
        type="AdPEClassificationDataset",
        source=_base_.data_root,
        split="train",
        num_classes=_base_.num_classes,
        transform=_base_.test_transform,
        on_corrupt="error",
    ),
)
