"""What classification on ImageNet shares: class folders under train/ and val/, the test transform, the metric.

The absolute positions are those of pretraining, resized bicubically without antialias to the image's patches (MAE's
util/pos_embed.py, AdPE's fine-tuning from 7 x 7 to 14 x 14).

Test: resized to 256 (bicubic), the central 224 x 224, a crop ratio of 224 / 256 (MAE's util/datasets.py).
"""

_base_ = "../runtime.py"

data_root = "data/imagenet"
pretrained = None
# Kind of positions: what the checkpoint says of itself; one that contradicts it is refused.
position = None
image_size = 224
num_classes = 1000
initialisation = dict(type="Pretrained", checkpoint=pretrained) if pretrained else None
test_transform = dict(input_size=image_size, interpolation="bicubic", crop_pct=224 / 256)
model = dict(
    model="adpe_vit_base_patch16",
    img_size=image_size,
    position=position,
    init_cfg=initialisation,
)
train_dataloader = dict(
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="AdPEClassificationDataset", source=data_root, split="train", num_classes=num_classes),
)
# An image that cannot be read ends an evaluation: another in its place would change the number.
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="AdPEClassificationDataset",
        source=data_root,
        split="val",
        num_classes=num_classes,
        transform=test_transform,
        on_corrupt="error",
    ),
)
val_evaluator = dict(type="AdPEAccuracy")
val_cfg = dict(type="ValLoop")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict(type="TestLoop")
# method: None takes the name from the checkpoint.
record = dict(
    method=None if pretrained else "random",
    task="classification",
    dataset="ImageNet-1K",
    start="pretrained" if pretrained else "random",
)
