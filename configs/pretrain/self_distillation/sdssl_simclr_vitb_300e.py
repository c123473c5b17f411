"""SD-SimCLR (arXiv 2111.12958), ViT-B, 300 epochs: SimCLR whose earlier layers learn from the last one.

Options: self_distillation=False is SimCLR itself.
Reproduces: nothing that this suite evaluates. The repository hagiss/SDSSL prints copy detection 75.5 mAP and video
segmentation 62.1 (J&F)m; SimCLR 74.7 and 61.8.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/self_distillation/sdssl_simclr_vitb_300e.py 8
"""

_base_ = "../../_base_/pretraining/sdssl.py"

base = "simclr"
