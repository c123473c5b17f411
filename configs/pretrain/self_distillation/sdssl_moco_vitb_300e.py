"""SD-MoCo v3 (arXiv 2111.12958), ViT-B, 300 epochs: MoCo v3 whose earlier layers learn from the last one.

Options: self_distillation=False is MoCo v3 itself.
Reproduces: nothing that this suite evaluates. The repository hagiss/SDSSL prints copy detection 76.3 mAP and video
segmentation 62.1 (J&F)m; MoCo v3 74.8 and 62.0.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/self_distillation/sdssl_moco_vitb_300e.py 8
"""

_base_ = "../../_base_/pretraining/sdssl.py"

base = "moco"
