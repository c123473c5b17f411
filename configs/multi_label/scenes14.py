"""Which digits are in the demo's scenes, from fourteen bands made of their colours, or from one sensor's alone.

Options: sensors="optical" or "radar": the other one's channels are zero in training and test of the probe;
blocks="last" for the last class token alone.
Reproduces: no published number; it is configs/multi_label/bigearthnet_vits8.py at the size of a laptop. The whole scene
is seen, uncropped, in training too: a crop would cut digits off and keep their labels. So its features are computed
once, and a batch norm precedes the linear layer, without which a small rate learns little in 100 passes of 1,000.
docs/evaluations/multi_label.md says what may be concluded.
Cost: about 10 seconds for 1,000 scenes on one CPU core.
Command: python tools/evaluate.py configs/multi_label/scenes14.py ENCODER --cfg-options data_root=DATA
"""

_base_ = ["../_base_/runtime.py", "../_base_/demo_transfer.py"]

custom_imports = dict(imports=["adpe.engine", "adpe.data.multiband.labels"], allow_failed_imports=False)
sensors = "both"
blocks = "four_last"
method = None if _base_.pretrained else "random"
groups = dict(radar=[12, 13], optical=list(range(12)))
transform = dict(input_size=48)
model = dict(
    type="AdPEFrozenEncoder",
    in_chans=14,
    learned_pos_embed=True,
    pos_embed_resize="dino",
    global_pool="token",
    blocks=blocks,
    init_cfg=_base_.initialisation,
    **_base_.encoder,
)
evaluation = dict(type="multi_label_probe", epochs=100, blr=0.01, batch_size=64)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPEMultiBandLabels",
        data_root=_base_.data_root,
        ann_file="instances_training.json",
        data_prefix=dict(img="images/training"),
        groups=groups,
        sensors=sensors,
        transform=transform,
        stand_in=True,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(
        type="AdPEMultiBandLabels",
        data_root=_base_.data_root,
        ann_file="instances_validation.json",
        data_prefix=dict(img="images/validation"),
        groups=groups,
        sensors=sensors,
        transform=transform,
        stand_in=True,
    ),
)
record = dict(
    method=method,
    task="multilabel",
    dataset="embedded_scenes, 14 bands" if sensors == "both" else f"embedded_scenes, 14 bands, {sensors} alone",
    start=_base_.start,
)
