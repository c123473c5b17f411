"""Linear probe on CIFAR-10: a linear layer on features that are computed once, 90 epochs of batch 512.

Reproduces: no published number; the recipe is configs/imagenet/linear_vitb.py scaled down: LARS, no weight decay,
BatchNorm without affine parameters, the class token. Changed: batch; the images as they are, so that an epoch takes a
fraction of a second; and the learning rate. A step of LARS is a share of the weights' norm, and 0.1 x batch / 256
leaves them unfinished in so few steps: on 10,000 images, of a random encoder, 27.1 top-1 where lr 25.6 gives 40.3 and
logistic regression 40.2.
Cost: 20 s for 10,000 and 5,000 images, ViT 4 x 64, on one core of two (2.1 GHz).
Command: python tools/evaluate.py configs/cifar10/linear.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4", global_pool="token")
evaluation = dict(type="linear_probe", epochs=90, warmup_epochs=10, lr=25.6, batch_size=512)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
