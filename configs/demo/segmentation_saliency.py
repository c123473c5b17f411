"""Saliency-guided attention (ours, after SGT) under UperNet on the demo's scenes: configs/demo/segmentation.py with it.

Reproduces: no published number. A quarter of the 36 patches attend to each other until the last of 4 blocks, so the
maps of the first three hold the embeddings alone at the others: for comparing choosers. The controls that belong beside
it are chooser=centre and chooser=random.
Cost: not measured.
Command: python tools/train.py configs/demo/segmentation_saliency.py --cfg-options data_root=DATA
"""

_base_ = "./segmentation.py"

chooser = "spectral_residual"
model = dict(
    backbone=dict(type="AdPESaliencyViT", saliency=dict(type=chooser, ratio=0.25, residual_before=-1)),
)
