"""A small GC ViT under UperNet on the demo's scenes: configs/demo/segmentation.py with another backbone.

Reproduces: no published number. Two blocks, a local and a global one, in each stage, of 16 to 128 channels; the maps of
48 px have 12, 6, 3 and 2 positions a side. There is no neck: the strides are 4 to 32.
Cost: not measured.
Command: python tools/train.py configs/demo/segmentation_gcvit.py --cfg-options data_root=DATA
"""

_base_ = "./segmentation.py"

dim = 16
model = dict(
    backbone=dict(
        _delete_=True,
        type="AdPEGCViT",
        variant=None,
        dim=dim,
        depths=(2, 2, 2, 2),
        heads=(1, 2, 4, 8),
        window_size=(6, 6, 3, 2),
        init_cfg=_base_.initialisation,
    ),
    neck=None,
    decode_head=dict(in_channels=[dim, 2 * dim, 4 * dim, 8 * dim]),
    auxiliary_head=dict(in_channels=4 * dim),
)
record = dict(method="GC ViT")
