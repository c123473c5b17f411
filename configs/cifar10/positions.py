"""How linearly readable a patch's position is after every block, and how far attention reaches, on CIFAR-10.

Compare with the random encoder of the same size: give no checkpoint.
Reproduces: no published number; a diagnostic.
Cost: not measured.
Command: python tools/evaluate.py configs/cifar10/positions.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

train_limit = 2000
test_limit = 500
# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4")
evaluation = dict(type="positions", ridge=1e-4, attention_images=64)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
record = dict(task="positions")
