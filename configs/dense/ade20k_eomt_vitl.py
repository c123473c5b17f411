"""EoMT with ViT-L on ADE20K, as published: 512 x 512, 39,153 iterations of batch 16 (31 epochs).

Reproduces: EoMT-L (arXiv 2503.19108; tue-mps/eomt's model zoo), mIoU 58.4 from DINOv2, whose schedule this is; 59.5
from DINOv3, with 20,208 iterations, lr 2e-4, no layer decay, warm-ups of 2,000 and 3,000 steps and another annealing.
MAE has none. Differs as configs/dense/ade20k_eomt_vitb.py does.
Cost: not measured.
Command: tools/dist_train.sh configs/dense/ade20k_eomt_vitl.py 4 --cfg-options pretrained=ENCODER
"""

_base_ = "./ade20k_eomt_vitb.py"

model = dict(backbone=dict(model="adpe_vit_large_patch16"))
