"""What classification on CIFAR-10 shares: ViT-Tiny on patches of 4 pixels, as configs/pretrain/cifar10_*.py have it.

Another size is given as there: --cfg-options model.embed_dim=96 model.depth=4 model.num_heads=3. The images are read
from the archive, which is unpacked into the cache folder once; a folder with train/ and test/ does as well.
"""

_base_ = "../runtime.py"

data_root = "data/cifar10/cifar10-jpeg.tar.xz"
pretrained = None
# Kind of positions: what the checkpoint says of itself; one that contradicts it is refused.
position = None
image_size = 32
num_classes = 10
# Images at most, evenly spaced; None takes all.
train_limit = None
test_limit = None
test_transform = dict(input_size=image_size, interpolation="bicubic", crop_pct=1.0)
model = dict(
    model="adpe_vit_tiny_patch4",
    img_size=image_size,
    position=position,
    init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
)
train_dataloader = dict(
    batch_size=512,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="AdPEClassificationDataset", source=data_root, split="train", num_classes=num_classes, limit=train_limit
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="AdPEClassificationDataset",
        source=data_root,
        split="test",
        num_classes=num_classes,
        limit=test_limit,
        transform=test_transform,
        on_corrupt="error",
    ),
)
val_evaluator = dict(type="AdPEAccuracy")
val_cfg = dict(type="ValLoop")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict(type="TestLoop")
record = dict(
    method=None if pretrained else "random",
    task="classification",
    dataset="CIFAR-10",
    start="pretrained" if pretrained else "random",
)
