"""SD-BYOL (arXiv 2111.12958), ViT-B, 300 epochs: BYOL whose earlier layers learn from the last one.

Options: self_distillation=False is BYOL itself.
Reproduces: nothing that this suite evaluates. The repository hagiss/SDSSL prints copy detection 74.2 mAP and video
segmentation 60.9 (J&F)m; BYOL 74.5 and 60.2.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/self_distillation/sdssl_byol_vitb_300e.py 8
"""

_base_ = "../../_base_/pretraining/sdssl.py"

base = "byol"
