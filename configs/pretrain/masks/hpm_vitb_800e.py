"""HPM (arXiv 2304.05919), ViT-B, 800 epochs; otherwise configs/pretrain/masks/hpm_vitb_200e.py.

Reproduces: ImageNet top-1 84.2 after fine-tuning, ADE20K 48.5 mIoU (README of Haochen-Wang409/HPM; MAE of 1600 epochs
83.6 and 48.1). The repository's script accumulates nothing, which makes batches of 256: effective_batch=256.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/masks/hpm_vitb_800e.py 8
"""

_base_ = "./hpm_vitb_200e.py"

epochs = 800
