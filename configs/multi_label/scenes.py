"""Which digits are in the demo's scenes, from half of the labels: dual prototypes, and a linear head beside them.

Options: known: share of the labels that training knows; text_side="random": prompts before a text side of random
weights, with contexts of each class's own (one for all learns nothing before it).
Reproduces: no published number; it is configs/multi_label/coco_vitb.py at the size of a laptop, at larger rates and
smaller logits, and without CLIP. docs/evaluations/multi_label.md says what may be concluded.
Cost: about 1 minute for 1,000 scenes on one CPU core.
Command: python tools/evaluate.py configs/multi_label/scenes.py ENCODER --cfg-options data_root=DATA
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_transfer.py"]

custom_imports = dict(imports=["adpe.engine", "adpe.data.multi_label"], allow_failed_imports=False)
known = 0.5
text_side = "table"
image_size = 48
transform = dict(input_size=image_size, crop_mode="squash", crop_pct=1.0, interpolation="bicubic")
model = dict(type="AdPEFrozenEncoder", init_cfg=_base_.initialisation, **_base_.encoder)
evaluation = dict(
    type="dual_prompts",
    text=dict(type="random", blocks=1, class_specific=True) if text_side == "random" else dict(type=text_side),
    known=known,
    logit_scale=0.25,
    epochs=20,
    lr=0.1,
    projection_lr=0.1,
    linear_lr=0.1,
    batch_size=32,
    cached=True,
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPEMultiLabelCoco",
        data_root=_base_.data_root,
        ann_file="instances_training.json",
        data_prefix=dict(img="images/training"),
        transform=transform,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPEMultiLabelCoco",
        data_root=_base_.data_root,
        ann_file="instances_validation.json",
        data_prefix=dict(img="images/validation"),
        transform=transform,
    ),
)
record = dict(method=_base_.method, task="multilabel", dataset="embedded_scenes", start=_base_.start)
