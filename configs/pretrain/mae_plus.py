"""MAE+ (arXiv 2303.07598): mask tokens before the encoder, four crops of 112 pixels per image, no adversary.

Options: size=base|large|huge, position=absolute|relative, epochs=400|1600 (warm-up of 20 and 40 epochs).
Reproduces: ImageNet top-1 after fine-tuning (README of the AdPE repository): ViT-B, 1600 epochs, 83.9 with absolute
and 84.2 with relative positions. No other length or size is published that we know of.
Cost: not measured. The reference trained ViT-B on one machine of 8 V100 (32 GB), accumulating 4 steps, or 4 of them.
Command: tools/dist_train.sh configs/pretrain/mae_plus.py 8
"""

_base_ = "../_base_/pretrain.py"

size = "base"
model = dict(model=f"adpe_vit_{size}_patch{14 if size == 'huge' else 16}")
train_dataloader = dict(batch_size={"large": 64, "huge": 32}.get(size, 128))
