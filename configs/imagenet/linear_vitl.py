"""Linear probe of ViT-L on ImageNet, 90 epochs of batch 16384 on a frozen encoder.

Reproduces: MAE, top-1 76.0 (facebookresearch/mae FINETUNE.md); AdPE publishes none.
The recipe is that of imagenet_linear_vitb.py; MAE's repository says that 50 epochs suffice (--cfg-options epochs=50).
Cost: not measured here.
Command: tools/dist_train.sh configs/imagenet/linear_vitl.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/classification/imagenet_linear.py"

model = dict(model="adpe_vit_large_patch16")
