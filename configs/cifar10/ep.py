"""EP on CIFAR-10: 8 queries attend to patch tokens that are computed once, 20 epochs of batch 256.

Reproduces: no published number; it is configs/imagenet/ep_vitb.py scaled down. Changed: queries, epochs, batch, images
as they are, and the learning rate, since a step of LARS is a share of the weights' norm and there are few steps.
Cost: a minute for 5,000 images on one CPU core.
Command: python tools/evaluate.py configs/cifar10/ep.py CHECKPOINT --cfg-options data_root=ARCHIVE train_limit=5000
"""

_base_ = "../_base_/classification/cifar10_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4")
evaluation = dict(
    type="efficient_probe", num_queries=8, epochs=20, warmup_epochs=2, blr=6.4, batch_size=256, cached=True
)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
