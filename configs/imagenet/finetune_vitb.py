"""Fine-tuning of ViT-B on ImageNet, 100 epochs of batch 1024.

Reproduces: MAE, top-1 83.57 (mean of 4 seeds, standard deviation 0.08; facebookresearch/mae FINETUNE.md). AdPE with
1600 epochs of pretraining, by its repository: 84.1 (absolute, embedding), 84.2 (absolute, coordinate), 84.3 (relative,
embedding), 84.4 (relative, coordinate); MAE+ 83.9 and 84.2.
The recipe is MAE's (arXiv 2111.06377, table 9, with the values of FINETUNE.md, which differ for ViT-B): AdamW, lr 5e-4
x batch / 256, layer decay 0.65, drop path 0.1, RandAugment, mixup, cutmix, erasing, label smoothing, mean of the patch
tokens. AdPE's repository searches 1e-4..1e-3 (--cfg-options blr=1e-4) and gives batch 4096 for relative positions
(--cfg-options effective_batch=4096).
Mixup is drawn for every 32 images, a GPU's share in MAE's commands, on however many GPUs this runs; AdPE's have 128
(--cfg-options mixup_batch=128).
Differs from MAE: bfloat16 instead of float16; the last epoch counts, where its script also prints the best one.
Cost: not measured here; 7 h 11 min on 32 V100 as published.
Command: tools/dist_train.sh configs/imagenet/finetune_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/classification/imagenet_finetune.py"
