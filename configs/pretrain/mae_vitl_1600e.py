"""MAE (arXiv 2111.06377), ViT-L, 1600 epochs: one crop of 224 pixels, mask tokens before the decoder.

Reproduces: ImageNet top-1 85.9 after fine-tuning (MAE repository's FINETUNE.md: 85.87 +- 0.07 over 4 seeds).
Cost: not measured; 800 epochs took 42 h on 64 V100 (PRETRAIN.md).
Command: tools/dist_train.sh configs/pretrain/mae_vitl_1600e.py 8
"""

_base_ = "../_base_/pretrain_1600e.py"

model = dict(model="adpe_vit_large_patch16", mask_tokens="decoder")
train_dataloader = dict(batch_size=64, dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
record = dict(method="MAE")
