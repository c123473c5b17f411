"""MAE (arXiv 2111.06377): one crop of 224 pixels, mask tokens before the decoder.

Options: size=base|large|huge, epochs=800|1600.
Reproduces: ImageNet top-1 after fine-tuning. 1600 epochs (MAE repository's FINETUNE.md): ViT-B 83.6 (83.57 +- 0.08
over 4 seeds), ViT-L 85.9 (85.87 +- 0.07), ViT-H 86.9. 800 epochs: ViT-B 83.3 (mmpretrain's reproduction), ViT-L 85.5
(MAE repository's PRETRAIN.md).
Cost: ViT-L, 800 epochs: about 2,700 V100 hours (PRETRAIN.md: 42 h on 64 V100); others not measured.
Command: tools/dist_train.sh configs/pretrain/mae.py 8
"""

_base_ = "./mae_plus.py"

model = dict(mask_tokens="decoder")
train_dataloader = dict(dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
record = dict(method="MAE")
