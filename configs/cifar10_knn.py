"""k-NN accuracy of frozen features on CIFAR-10, k = 20, votes weighted with temperature 0.07.

Reproduces: no published number; the protocol is DINO's (arXiv 2104.14294), on the mean of the patch tokens.
There is nothing to train: the run computes the features of the training images, then evaluates and writes the record.
Cost: not measured.
Command: python tools/train.py configs/cifar10_knn.py --cfg-options data_root=ARCHIVE pretrained=CHECKPOINT
"""

_base_ = "./_base_/cifar10_classification.py"

model = dict(type="AdPEKNNClassifier", global_pool="avg", k=20, temperature=0.07)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
custom_hooks = [dict(type="AdPEFeatureBankHook")]
# Of nothing: mmengine's Runner asks for one.
optim_wrapper = dict(
    type="OptimWrapper", constructor="AdPENothingToOptimizeConstructor", optimizer=dict(type="SGD", lr=1.0)
)
train_cfg = dict(by_epoch=True, max_epochs=0)
default_hooks = dict(checkpoint=None)
# No checkpoint is written that tools/test.py could evaluate.
test_dataloader = None
test_evaluator = None
test_cfg = None
