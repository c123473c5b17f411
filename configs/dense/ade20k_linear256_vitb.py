"""Linear segmentation on ADE20K by Pixio's protocol: crops of 256 pixels, the class token beside every patch, ViT-B.

Reproduces: the linear probe of Pixio (arXiv 2512.15715; facebookresearch/pixio, evaluation/semseg), with which its
README gives MAE ViT-H/14 35.2 mIoU and Pixio ViT-H/16 50.2; no number of a ViT-B is known to us. Last block and final
norm; each patch token beside the mean of the class tokens, 2 x 768 channels; batch norm, one 1x1 layer; cross-entropy
over labelled pixels, logits stretched with aligned corners; AdamW 2e-4, weight decay 0.01, a polynomial of power 0.9,
bfloat16; 60 epochs of 1,263 steps of batch 16. Images at 0.5 to 2 times their own size, bicubic, a random crop of 256
pixels, a flip; tested at their own size in windows of 256 that slide by 170.
Never in one ranking with configs/dense/ade20k_linear_vitb.py (512 pixels) or configs/dense/ade20k_knn_vitb.py (224):
the protocol that records carry tells the three apart.
Differs: windows at the border move inwards and logits are averaged, where the reference fills windows up with zeros and
sums probabilities; the last weights are tested, the reference reports the best of 60 epochs on the validation images;
the scale is drawn evenly, not in whole pixels of the longer side; the layer starts at normal(0, 0.01); the rate of a
step is the reference's of the step after it.
Cost: not measured.
Command: tools/dist_train.sh configs/dense/ade20k_linear256_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "./ade20k_linear_vitb.py"

embed_dim = 2 * 768  # patch and class token
crop_size = (256, 256)
stride = (170, 170)
epochs = 60
max_iters = epochs * (20210 // 16)
effective_batch = 16
lr = 2e-4
model = dict(
    backbone=dict(out_type="featmap_cls"),
    decode_head=dict(
        dropout_ratio=0.0,
        align_corners=True,
        loss_decode=dict(avg_non_ignore=True),
    ),
    test_cfg=dict(stride=stride),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="AdPEProbeResize", ratio_range=(0.5, 2.0), interpolation="bicubic"),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    # Before normalisation: black, where the data preprocessor would fill up with the mean colour.
    dict(type="Pad", size=crop_size, pad_val=dict(img=0, seg=255)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(type="AdPEAutocastOptimWrapper", optimizer=dict(weight_decay=0.01))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False)]
tta_pipeline = None
tta_model = None
