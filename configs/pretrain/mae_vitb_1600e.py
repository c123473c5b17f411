"""MAE (arXiv 2111.06377), ViT-B, 1600 epochs: one crop of 224 pixels, mask tokens before the decoder.

Reproduces: ImageNet top-1 83.6 after fine-tuning (MAE repository's FINETUNE.md: 83.57 +- 0.08 over 4 seeds).
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/mae_vitb_1600e.py 8
"""

_base_ = "../_base_/pretrain_1600e.py"

model = dict(model="adpe_vit_base_patch16", mask_tokens="decoder")
train_dataloader = dict(dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
record = dict(method="MAE")
