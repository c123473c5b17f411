"""Low-shot classification on ImageNet: logistic regression on ViT-B's frozen features, 1 % of every class, five draws.

Reproduces: no published number: low-shot rows of papers are of one fixed 1 % list and of other regularisation, so do
not compare with them. --cfg-options evaluation.shots=0.1, or a whole number of images a class (1 needs one C:
evaluation.cs=[1.0]).
Cost: not measured; one forward pass over 1.33 million images, in one process.
Command: python tools/evaluate.py configs/imagenet/lowshot_vitb.py ENCODER
"""

_base_ = "../_base_/classification/imagenet_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_base_patch16")
evaluation = dict(type="logistic", shots=0.01, draws=5)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
