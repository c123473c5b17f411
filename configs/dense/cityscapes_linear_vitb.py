"""Linear segmentation on Cityscapes with a frozen ViT-B: batch norm and one 1x1 layer, 40,000 iterations of batch 16.

Reproduces: no published number that we know of. Head, schedule, augmentation and sliding window are those of
configs/dense/ade20k_linear_vitb.py: the reference's released settings, which are for ADE20K. On Cityscapes they are
ours. So is the scale: the shorter side is 1024 pixels, an image's own, times 0.5 to 2 in training, as in
mmsegmentation's configs of Cityscapes. Trained on the 2,975 finely annotated images, tested on the 500 of val; 19
classes, of which road is label 0: the reference's evaluation would drop it.
Not to be ranked with: MAE's Cityscapes values by CAPI (ViT-L, patch labels at 224 pixels: 32.8 by k-NN, 38.5 by
logistic regression, arXiv 2502.08769, as its table 7 is quoted).
Cost: not measured.
Command: tools/dist_train.sh configs/dense/cityscapes_linear_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/public_linear_segmentation.py"

dataset_type = "AdPECityscapesDataset"
data_root = "data/cityscapes"
train_split = "train"
val_split = "val"
num_classes = 19
short_side = 1024
record = dict(dataset="Cityscapes")
