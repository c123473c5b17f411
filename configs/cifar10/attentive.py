"""CAPI's attentive probe on CIFAR-10: 16 heads at once on tokens that are computed once, 1,000 steps of batch 256.

Reproduces: no published number; it is configs/imagenet/attentive_vitb.py scaled down. Changed: fewer rates and decays,
steps, batch, and images as they are.
Cost: a few minutes for 5,000 images on one CPU core.
Command: python tools/evaluate.py configs/cifar10/attentive.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4")
evaluation = dict(
    type="attentive_probe",
    rates=(1e-3, 1e-2),
    decays=(5e-4, 5e-2),
    iterations=1000,
    warmup=100,
    batch_size=256,
    cached=True,
)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
