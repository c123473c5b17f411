"""AdPE, ViT-Tiny on small photographs.

Options: position=absolute|relative, adversary=coordinate|embedding.
Reproduces: no published number; the recipe is _base_/pretraining/photos112.py, the published one scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/photos112_adpe.py --cfg-options data_root=FOLDER
"""

_base_ = "../_base_/pretraining/photos112.py"

adversary = "coordinate"
