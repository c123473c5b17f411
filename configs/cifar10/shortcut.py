"""Shortcuts on CIFAR-10: images of 24 px on a canvas of 48 px whose colour tells the class in 95 % of training images.

Reproduces: no published number; a test of this project, after the question of SGT (arXiv 2206.08567). A linear probe on
frozen features is tested on images whose border tells the class as in training (`top1_cue`), is random (`top1_no_cue`)
or grey (`top1_no_border`). What may be concluded: how far this probe on this encoder follows the border, on images that
are made so that it can; not how robust the encoder is elsewhere. With place="centre" the object is where
saliency type=centre looks, by construction: show place=random beside it, and the choosers centre and random beside any
other (--cfg-options model.saliency.type=spectral_residual model.saliency.ratio=0.25).
Cost: a minute for 10,000 and 3 x 5,000 images, ViT 4 x 64, on one core of two (2.1 GHz).
Command: python tools/evaluate.py configs/cifar10/shortcut.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "./linear.py"

place = "centre"
agreement = 0.95
canvas = 48
transform = dict(input_size=canvas, interpolation="bicubic", crop_pct=1.0)
bordered = dict(
    type="AdPEBorderedDataset",
    agreement=agreement,
    canvas=canvas,
    inner=canvas // 2,
    place=place,
    transform=transform,
)
model = dict(img_size=canvas, saliency=dict())
evaluation = dict(type="shortcut")
train_dataloader = dict(dataset=dict(border="class", **bordered))
val_dataloader = dict(dataset=dict(border="random", **bordered))
cue_dataloader = dict(
    batch_size=256,
    num_workers=0,
    dataset=dict(
        source=_base_.data_root,
        split="test",
        num_classes=_base_.num_classes,
        limit=_base_.test_limit,
        on_corrupt="error",
        border="class",
        **bordered,
    ),
)
plain_dataloader = dict(
    batch_size=256,
    num_workers=0,
    dataset=dict(
        source=_base_.data_root,
        split="test",
        num_classes=_base_.num_classes,
        limit=_base_.test_limit,
        on_corrupt="error",
        border="none",
        **bordered,
    ),
)
record = dict(task="shortcut")
