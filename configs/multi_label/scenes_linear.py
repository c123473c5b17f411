"""A multi-label linear probe on the demo's scenes, by their label maps: which digits are in a picture.

Options: known: share of the labels that training knows; pool="avg" for the mean of the patches.
Reproduces: no published number. Loss, optimiser and schedule are those of DINO-MM's probe (arXiv 2204.05381); it reads
the class tokens of the last four blocks, this the last block's.
Cost: a few seconds on one CPU core.
Command: python tools/evaluate.py configs/multi_label/scenes_linear.py ENCODER --cfg-options data_root=DATA
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_transfer.py"]

custom_imports = dict(imports=["adpe.engine", "adpe.data.multi_label"], allow_failed_imports=False)
known = 1.0
pool = "token"
transform = dict(input_size=48, crop_mode="squash", crop_pct=1.0, interpolation="bicubic")
model = dict(type="AdPEFrozenEncoder", global_pool=pool, init_cfg=_base_.initialisation, **_base_.encoder)
evaluation = dict(type="multi_label_probe", known=known, epochs=100, blr=0.01, batch_size=64)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPEMultiLabelMasks",
        data_root=_base_.data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        without=["background"],
        transform=transform,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPEMultiLabelMasks",
        data_root=_base_.data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        without=["background"],
        transform=transform,
    ),
)
record = dict(method=_base_.method, task="multilabel", dataset="embedded_scenes", start=_base_.start)
