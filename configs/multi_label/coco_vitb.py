"""DualCoOp's recipe for partial labels on COCO (arXiv 2206.09541) on a frozen ViT-B, half of the labels known.

Options: text_checkpoint: a local state dict of CLIP, in whose text transformer 16 contexts are learned; without it the
text side has random weights, a stand-in. known: share of the labels.
Reproduces: the recipe, no published number: those found are secondary, and of CLIP's ResNets. Contexts, batches,
epochs, schedule, image size, cutout, RandAugment, scales and loss are the published ones.
Differs: the image side is the encoder's patches with ImageNet's mean and standard deviation, and a projection to the
text's space that is learned, where the published one is CLIP's own and frozen; the last epoch counts, not the best one
on the test images; classes without a test image are left out of the mean.
Cost: not measured; 50 passes of 118,000 images of 448 x 448 through the encoder, in one process.
Command: python tools/evaluate.py configs/multi_label/coco_vitb.py ENCODER --cfg-options text_checkpoint=CLIP
"""

_base_ = "../_base_/runtime.py"

custom_imports = dict(imports=["adpe.engine", "adpe.data.multi_label"], allow_failed_imports=False)
data_root = "data/coco"
pretrained = None
# Kind of positions: what the checkpoint says of itself; one that contradicts it is refused.
position = None
text_checkpoint = None
known = 0.5
image_size = 448
contexts = 16
transform = dict(input_size=image_size, crop_mode="squash", crop_pct=1.0, interpolation="bilinear")
# An encoder file says its size.
model = dict(
    type="AdPEFrozenEncoder",
    model=None if pretrained else "adpe_vit_base_patch16",
    img_size=image_size,
    position=position,
    init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
)
evaluation = dict(
    type="dual_prompts",
    text=(
        dict(type="clip", checkpoint=text_checkpoint, contexts=contexts)
        if text_checkpoint
        else dict(type="random", width=512, blocks=12, heads=8, joint=512, contexts=contexts)
    ),
    known=known,
    region_scale=20.0,
    logit_scale=5.0,
    loss_weight=0.03,
    gamma_neg=2.0,
    gamma_pos=1.0,
    clip=0.05,
    epochs=50,
    warmup_epochs=1,
    warmup_lr=1e-5,
    lr=0.002,
    projection_lr=0.002,
    linear_lr=0.002,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=32,
    cached=False,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    dataset=dict(
        type="AdPEMultiLabelCoco",
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017"),
        transform=transform,
        cutout=0.5,
        rand_augment=True,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    dataset=dict(
        type="AdPEMultiLabelCoco",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017"),
        transform=transform,
    ),
)
record = dict(
    method=None if pretrained else "random",
    task="multilabel",
    dataset="COCO",
    start="pretrained" if pretrained else "random",
)
