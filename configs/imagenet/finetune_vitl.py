"""Fine-tuning of ViT-L on ImageNet, 50 epochs of batch 1024.

Reproduces: MAE, top-1 85.87 (mean of 4 seeds, standard deviation 0.07; facebookresearch/mae FINETUNE.md); AdPE with
relative positions and the coordinate adversary, 86.3 (its repository; batch 4096 by its commands:
--cfg-options effective_batch=4096 mixup_batch=128). Which base rate gave it is not said:
its repository searches 1e-4..1e-3, and 1e-3 at batch 4096 is lr 1.6e-2, the top of that range: sweep blr too.
The recipe is MAE's: lr 1e-3 x batch / 256, layer decay 0.75, drop path 0.2; see imagenet_finetune_vitb.py.
Cost: not measured here; 8 h 52 min on 32 V100 as published.
Command: tools/dist_train.sh configs/imagenet/finetune_vitl.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/classification/imagenet_finetune.py"

epochs = 50
blr = 1e-3
model = dict(model="adpe_vit_large_patch16", drop_path_rate=0.2)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
