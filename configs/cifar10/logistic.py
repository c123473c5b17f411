"""Logistic regression on CIFAR-10's pooled features, or low-shot classification with few images a class.

Reproduces: no published number. --cfg-options evaluation.shots=0.01 evaluation.draws=5 takes 1 % of every class, five
times, and reports mean and standard deviation; evaluation.shots=5 takes five images a class.
Cost: a minute for 5,000 images of a small encoder on one CPU core.
Command: python tools/evaluate.py configs/cifar10/logistic.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4")
evaluation = dict(type="logistic", shots=None, draws=1)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
