"""Linear segmentation on COCO-Stuff 164k with a frozen ViT-B: batch norm and one 1x1 layer, 40,000 iterations of 16.

Reproduces: no published number that we know of. Head, schedule, augmentation and sliding window are those of
configs/dense/ade20k_linear_vitb.py: the reference's released settings, which are for ADE20K. On COCO-Stuff they are
ours. At batch 16 they see 640,000 crops, 5.4 for each of the 118,287 training images. Tested on the 5,000 of val2017;
171 classes (80 of things, 91 of stuff), of which person is label 0.
Cost: not measured.
Command: tools/dist_train.sh configs/dense/coco_stuff_linear_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "../_base_/public_linear_segmentation.py"

dataset_type = "AdPECOCOStuffDataset"
data_root = "data/coco_stuff164k"
train_split = "train2017"
val_split = "val2017"
num_classes = 171
record = dict(dataset="COCO-Stuff 164k")
