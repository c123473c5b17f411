"""DINO-MM's linear probe on BigEarthNet-MM (arXiv 2204.05381): 19 labels, from both sensors or from one alone.

`data_root` has folders ``train`` and ``val`` of ``.npy`` files, bytes (height, width, 14) as for
configs/pretrain/bands/dino_mm_vits8_100e.py, and labels by image, ``train_labels.json`` and ``val_labels.json``
(``{"name": ["label", ...]}``; ann_file="{split}_labels.csv" for rows ``name,label,label,...``).
Options: sensors="optical" or "radar": the other one's channels are zero in training and test of the probe;
train_limit: images of the training, evenly spaced (a JSON of its own for another subset).
Reproduces: the protocol, no number; the table of the paper could not be read (published value unknown). Four class
tokens, a linear layer without batch norm, SGD, rate, schedule, batch and crops are those of zhu-xlab/DINO-MM.
Differs: its subset of 1 % is drawn with replacement; it reports the mean of the batches' average precision, here are
the whole set's, micro and macro.
Cost: not measured; 100 passes of the training images through ViT-S/8 at 128 pixels, in one process.
Command: python tools/evaluate.py configs/multi_label/bigearthnet_vits8.py ENCODER --cfg-options data_root=FOLDER
"""

_base_ = "../_base_/runtime.py"

custom_imports = dict(imports=["adpe.engine", "adpe.data.multiband.labels"], allow_failed_imports=False)
data_root = "data/bigearthnet_mm"
pretrained = None
sensors = "both"
blocks = "four_last"
ann_file = "{split}_labels.json"
train_limit = None
groups = dict(radar=[12, 13], optical=list(range(12)))
labels = [
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
]
# An encoder file says its size.
model = dict(
    type="AdPEFrozenEncoder",
    model=None if pretrained else "adpe_vit_small_patch8",
    img_size=112,
    in_chans=14,
    learned_pos_embed=True,
    pos_embed_resize="dino",
    global_pool="token",
    blocks=blocks,
    init_cfg=dict(type="Pretrained", checkpoint=pretrained) if pretrained else None,
)
evaluation = dict(
    type="multi_label_probe",
    epochs=100,
    blr=0.01,
    batch_size=256,
    momentum=0.9,
    weight_decay=0.0,
    batch_norm=False,
    cached=False,
)
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    dataset=dict(
        type="AdPEMultiBandLabels",
        data_root=data_root,
        ann_file=ann_file.format(split="train"),
        data_prefix=dict(img="train"),
        groups=groups,
        classes=labels,
        sensors=sensors,
        transform=dict(input_size=128, is_training=True, scale=(0.08, 1.0), hflip=0.5),
        limit=train_limit,
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    dataset=dict(
        type="AdPEMultiBandLabels",
        data_root=data_root,
        ann_file=ann_file.format(split="val"),
        data_prefix=dict(img="val"),
        groups=groups,
        classes=labels,
        sensors=sensors,
        transform=dict(input_size=112, resize=128),
    ),
)
record = dict(
    method=None if pretrained else "random",
    task="multilabel",
    dataset="BigEarthNet-MM" if sensors == "both" else f"BigEarthNet-MM, {sensors} alone",
    start="pretrained" if pretrained else "random",
)
