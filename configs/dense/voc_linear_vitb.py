"""Linear segmentation on PASCAL VOC 2012 with a frozen ViT-B: batch norm and one 1x1 layer, 40,000 iterations of 16.

Reproduces: no published number that we know of. Head, schedule, augmentation and sliding window are those of
configs/dense/ade20k_linear_vitb.py: the reference's released settings, which are for ADE20K. On VOC they are ours.
Trained on the 10,582 images of train and SBD (train_dataloader.dataset.split=train takes the 1,464 alone), tested on
the 1,449 of val. All 21 classes count, the background too: label 0 is a class. The reference's evaluation would drop
it. Not to be ranked with: MAE's VOC values by CAPI (ViT-L, patch labels at 224 pixels: 53.7 by k-NN, 61.5 by logistic
regression, arXiv 2502.08769, as its table 7 is quoted) and by Pixio (ViT-H, crops of 256 pixels: 70.8, its README).
Cost: not measured.
Command: tools/dist_train.sh configs/dense/voc_linear_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/public_linear_segmentation.py"

dataset_type = "AdPEPascalVOCDataset"
data_root = "data/VOCdevkit/VOC2012"
train_split = "trainaug"
val_split = "val"
num_classes = 21
record = dict(dataset="PASCAL VOC 2012")
