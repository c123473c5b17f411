"""UperNet on ADE20K where a quarter of the patches attend to each other until the last block, ours after SGT.

Reproduces: no published number: no code of SGT (arXiv 2206.08567) was published, and it does not segment. The recipe is
configs/ade20k_upernet_vitb.py. Patches are chosen by spectral residual; the controls that belong beside it are given by
--cfg-options model.backbone.saliency.type=centre (random, attention). A row is called "saliency-guided (ours, after
SGT)". Cost: not measured.
Command: tools/dist_train.sh configs/backbones/ade20k_upernet_saliency_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../ade20k_upernet_vitb.py"

pretrained = None
model = dict(
    backbone=dict(
        type="AdPESaliencyViT",
        saliency=dict(type="spectral_residual", ratio=0.25, residual_before=-1),
        init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
    ),
)
record = dict(start="pretrained" if pretrained else "random", method=None if pretrained else "random")
