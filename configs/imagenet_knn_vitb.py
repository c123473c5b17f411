"""k-NN accuracy of ViT-B's frozen features on ImageNet, k = 20, votes weighted with temperature 0.07.

Reproduces: no published number of MAE's or AdPE's own; the protocol is DINO's (arXiv 2104.14294, section 4.1), on the
mean of the patch tokens (DINO's class token: --cfg-options model.global_pool=token).
There is nothing to train: the run computes the features of the training images, then evaluates and writes the record.
It takes one process. Cost: not measured here; one forward pass over 1.33 million images.
Command: python tools/train.py configs/imagenet_knn_vitb.py --cfg-options pretrained=ENCODER
"""

_base_ = "./_base_/imagenet_classification.py"

model = dict(type="AdPEKNNClassifier", global_pool="avg", k=20, temperature=0.07)
train_dataloader = dict(batch_size=128, dataset=dict(transform=_base_.test_transform))
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
