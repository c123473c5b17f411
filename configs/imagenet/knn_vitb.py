"""k-NN accuracy of ViT-B's frozen features on ImageNet, k = 20, votes weighted with temperature 0.07.

Reproduces: no published number of MAE's or AdPE's own; the protocol is DINO's (arXiv 2104.14294, section 4.1), on the
mean of the patch tokens (DINO's class token: --cfg-options model.global_pool=token).
Cost: not measured here; one forward pass over 1.33 million images, in one process.
Command: python tools/evaluate.py configs/imagenet/knn_vitb.py ENCODER
"""

_base_ = "../_base_/classification/imagenet_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_base_patch16")
evaluation = dict(type="knn", k=20, temperature=0.07)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
