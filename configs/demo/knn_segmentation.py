"""k-NN segmentation of the demo's scenes from the small encoder's frozen patch features, at 48 x 48.

Reproduces: no published number. It is configs/dense/ade20k_knn_vitb.py at the size of a laptop; --cfg-options
evaluation.method=logreg labels patches by logistic regression instead.
Cost: a few seconds on one CPU core.
Command: python tools/evaluate.py configs/demo/knn_segmentation.py CHECKPOINT --cfg-options data_root=DATA
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_transfer.py"]

default_scope = "mmseg"
custom_imports = dict(
    imports=["adpe.engine", "adpe.data.segmentation", "adpe.data.views.probe_transforms"],
    allow_failed_imports=False,
)
image_size = 48
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="AdPESquash", size=image_size),
]
model = dict(type="AdPEFrozenEncoder", init_cfg=_base_.initialisation, **_base_.encoder)
evaluation = dict(type="knn_segmentation", method="knn", ignore_labels=(0, 255), size=image_size)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPESegmentationDataset",
        data_root=_base_.data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=pipeline,
        test_mode=True,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPESegmentationDataset",
        data_root=_base_.data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=pipeline,
        test_mode=True,
    ),
)
record = dict(method=_base_.method, task="segmentation", dataset="embedded_scenes", start=_base_.start)
