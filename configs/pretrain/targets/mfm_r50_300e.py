"""MFM (arXiv 2206.07706), ResNet-50, 300 epochs: the same recipe as ViT-B, low frequencies kept with probability 0.3.

Reproduces: ImageNet top-1 78.5 after fine-tuning for 100 epochs, 80.1 for 300 (README of Jiahao000/MFM).
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/targets/mfm_r50_300e.py 8
"""

_base_ = "./mfm_vitb_300e.py"

model = dict(model="resnet50", low_pass_probability=0.3)
