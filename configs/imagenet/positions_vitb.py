"""How linearly readable a patch's position is after every block of ViT-B, and how far attention reaches, on ImageNet.

Compare with the random encoder of the same size: give no checkpoint.
Reproduces: no published number; a diagnostic, of 2,000 training and 1,000 validation images.
Cost: not measured; one forward pass over 3,000 images.
Command: python tools/evaluate.py configs/imagenet/positions_vitb.py ENCODER
"""

_base_ = "../_base_/classification/imagenet_classification.py"

train_limit = 2000
test_limit = 1000
# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_base_patch16")
evaluation = dict(type="positions", ridge=1e-4, attention_images=64)
train_dataloader = dict(batch_size=64, dataset=dict(limit=train_limit, transform=_base_.test_transform))
val_dataloader = dict(batch_size=64, dataset=dict(limit=test_limit))
test_dataloader = val_dataloader
record = dict(task="positions")
