"""k-NN segmentation of ADE20K from ViT-B's frozen patch features, 224 x 224, k and distance chosen on training images.

Reproduces: CAPI's protocol (arXiv 2502.08769); MAE ViT-L/16 has 21.5 mIoU with it, and 27.4 by logistic regression
(--cfg-options evaluation.method=logreg), as its table 7 is quoted; those numbers are `mIoU_ignored_predicted`.
"224 patch labels": everything is counted at 224 x 224, and does not compare with numbers of 512-pixel protocols.
Differs: `mIoU` never predicts an ignored label; search in float32 (published: evaluation.search_dtype=bfloat16); the
regression runs to its optimum.
Cost: not measured; 4.0 million patches, 12 GB of memory for ViT-B.
Command: python tools/evaluate.py configs/dense/ade20k_knn_vitb.py ENCODER
"""

_base_ = "../_base_/runtime.py"

default_scope = "mmseg"
custom_imports = dict(
    imports=["adpe.engine", "adpe.data.segmentation", "adpe.data.views.probe_transforms"],
    allow_failed_imports=False,
)
data_root = "data/ade/ADEChallengeData2016"
pretrained = None
# Kind of positions: what the checkpoint says of itself; one that contradicts it is refused.
position = None
image_size = 224
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="AdPESquash", size=image_size),
]
# An encoder file says its size.
model = dict(
    type="AdPEFrozenEncoder",
    model=None if pretrained else "adpe_vit_base_patch16",
    img_size=image_size,
    position=position,
    init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
)
evaluation = dict(type="knn_segmentation", method="knn", ignore_labels=(0, 255), size=image_size)
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    dataset=dict(
        type="AdPEADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=pipeline,
        # No image is replaced by another.
        test_mode=True,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    dataset=dict(
        type="AdPEADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=pipeline,
        test_mode=True,
    ),
)
record = dict(
    method=None if pretrained else "random",
    task="segmentation",
    dataset="ADE20K",
    start="pretrained" if pretrained else "random",
)
