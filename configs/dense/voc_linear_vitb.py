"""Linear segmentation on PASCAL VOC 2012 with a frozen ViT-B: batch norm and one 1x1 layer, 40,000 iterations of 16.

Reproduces: no published number that we know of. Head, schedule, augmentation and sliding window are those of
configs/ade20k_linear_vitb.py: the reference's released settings, which are for ADE20K. On VOC they are ours. Trained on
the 10,582 images of train and SBD (train_dataloader.dataset.split=train takes the 1,464 alone), tested on the 1,449 of
val. All 21 classes count, the background too: label 0 is a class. The reference's evaluation would drop it.
Not to be ranked with: MAE's VOC values by CAPI (ViT-L, patch labels at 224 pixels: 53.7 by k-NN, 61.5 by logistic
regression, arXiv 2502.08769, as its table 7 is quoted) and by Pixio (ViT-H, crops of 256 pixels: 70.8, its README).
Cost: not measured.
Command: tools/dist_train.sh configs/dense/voc_linear_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../ade20k_linear_vitb.py"

custom_imports = dict(
    imports=[
        "adpe.engine",
        "adpe.data.public_segmentation",
        "adpe.transfer.linear_segmentation_head",
        "adpe.data.views.probe_transforms",
    ],
    allow_failed_imports=False,
)
data_root = "data/VOCdevkit/VOC2012"
num_classes = 21
reduce_zero_label = False
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="AdPEPascalVOCDataset",
        data_root=data_root,
        split="trainaug",
        reduce_zero_label=reduce_zero_label,
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="AdPEPascalVOCDataset",
        data_root=data_root,
        split="val",
        reduce_zero_label=reduce_zero_label,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
record = dict(dataset="PASCAL VOC 2012")
