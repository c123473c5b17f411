"""k-NN accuracy of frozen features on CIFAR-10, k = 20, votes weighted with temperature 0.07.

Reproduces: no published number; the protocol is DINO's (arXiv 2104.14294), on the mean of the patch tokens.
Any class folders do: --cfg-options data_root=FOLDER num_classes=N image_size=PIXELS, with train/ and test/ in them.
Cost: 12 s for 10,000 and 5,000 images, ViT 4 x 64, on one core of two (2.1 GHz).
Command: python tools/evaluate.py configs/cifar10/knn.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4")
evaluation = dict(type="knn", k=20, temperature=0.07)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
