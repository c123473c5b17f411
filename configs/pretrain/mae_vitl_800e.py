"""MAE (arXiv 2111.06377), ViT-L, 800 epochs: one crop of 224 pixels, mask tokens before the decoder.

Reproduces: ImageNet top-1 85.5 after fine-tuning (MAE repository's PRETRAIN.md).
Cost: about 2,700 V100 hours (PRETRAIN.md: 42 h on 64 V100).
Command: tools/dist_train.sh configs/pretrain/mae_vitl_800e.py 8
"""

_base_ = "../_base_/pretrain_800e.py"

model = dict(model="adpe_vit_large_patch16", mask_tokens="decoder")
train_dataloader = dict(batch_size=64, dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
record = dict(method="MAE")
