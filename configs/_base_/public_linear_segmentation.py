"""Linear segmentation of a public data set whose label 0 is a class; a child says which data set, and its splits."""

_base_ = "../dense/ade20k_linear_vitb.py"

custom_imports = dict(
    imports=[
        "adpe.engine",
        "adpe.data.public_segmentation",
        "adpe.transfer.linear_segmentation_head",
        "adpe.data.views.probe_transforms",
    ],
    allow_failed_imports=False,
)
dataset_type = "AdPEPascalVOCDataset"
data_root = "data/VOCdevkit/VOC2012"
train_split = "trainaug"
val_split = "val"
num_classes = 21
reduce_zero_label = False
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        split=train_split,
        reduce_zero_label=reduce_zero_label,
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        split=val_split,
        reduce_zero_label=reduce_zero_label,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
