"""Linear probe on CIFAR-10: a linear layer on the frozen encoder, 90 epochs of batch 512.

Reproduces: no published number; the recipe is configs/imagenet_linear_vitb.py scaled down: LARS, no weight decay,
BatchNorm without affine parameters. Changed: batch; the images as they are (augment=False), so that the features are
computed once and an epoch takes a fraction of a second (augment=True crops and flips); and the learning rate. A step of
LARS is a share of the weights' norm, and 0.1 x batch / 256 leaves them unfinished in so few steps: on 10,000 images, of
a random encoder, 27.1 top-1 where lr 25.6 gives 40.3 and logistic regression 40.2.
Cost: not measured.
Command: python tools/train.py configs/cifar10_linear.py --cfg-options data_root=ARCHIVE pretrained=CHECKPOINT
"""

_base_ = ["./_base_/cifar10_classification.py", "./_base_/warmup_cosine.py"]

augment = False
epochs = 90
warmup_epochs = 10
effective_batch = 512
lr = 25.6
model = dict(type="AdPEClassifier", frozen=True, global_pool="token", head_init_std=0.01)
train_transform = dict(
    input_size=_base_.image_size, is_training=True, color_jitter=None, hflip=0.5, interpolation="bicubic"
)
train_dataloader = dict(dataset=dict(transform=train_transform if augment else _base_.test_transform))
# The statistics of the BatchNorm are averaged over processes, which would each evaluate with their own.
custom_hooks = [dict(type="SyncBuffersHook"), *([] if augment else [dict(type="AdPEFeatureCacheHook")])]
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="AdPELarsOptimWrapperConstructor",
    optimizer=dict(type="AdPELars", lr=lr, momentum=0.9, weight_decay=0.0, trust_coeff=0.001),
)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=max(1, epochs // 5)))
