"""A small SP-ViT under UperNet on the demo's scenes: configs/demo/segmentation.py with another backbone.

Reproduces: no published number. 4 blocks x 64 on patches of 8 pixels, a spatial prior in the first three, a stem of 16
channels; the neck and the heads are the encoder's.
Cost: not measured.
Command: python tools/train.py configs/demo/segmentation_spvit.py --cfg-options data_root=DATA
"""

_base_ = "./segmentation.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="AdPESPViT",
        variant=None,
        img_size=_base_.image_size,
        patch_size=8,
        embed_dim=_base_.width,
        depth=4,
        num_heads=2,
        prior_blocks=3,
        skip_lam=2.0,
        stem=16,
        out_indices=(0, 1, 2, 3),
        init_cfg=_base_.initialisation,
    ),
)
record = dict(method="SP-ViT")
