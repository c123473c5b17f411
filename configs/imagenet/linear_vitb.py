"""Linear probe of ViT-B on ImageNet, 90 epochs of batch 16384 on a frozen encoder.

Reproduces: MAE, top-1 67.8 (facebookresearch/mae FINETUNE.md; 68.0 in its paper, by another implementation); AdPE
publishes none.
The recipe is MAE's: LARS, lr 0.1 x batch / 256, no weight decay, random resized crops and flips alone, the class token
under a BatchNorm without affine parameters. Differs: bfloat16 instead of float16; crops
are drawn in up to ten attempts, as torchvision does, where MAE cuts the first draw to the image.
Cost: not measured here; 2 h 20 min on 32 V100 as published.
Command: tools/dist_train.sh configs/imagenet/linear_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/classification/imagenet_linear.py"
