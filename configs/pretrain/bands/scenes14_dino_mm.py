"""DINO-MM on fourteen bands made of the demo's scenes, four blocks of width 64: for trying out on a CPU.

Options: sensor_drop=0.5; 0 is plain DINO on fourteen bands, the control.
Reproduces: no published number; the recipe is configs/pretrain/bands/dino_mm_vits8_100e.py scaled down.
Differs, for 434 steps of 64 images and a width of 64: a narrower bottleneck, a colder teacher, a centre that follows
faster, two local views, no stochastic depth. With the published values (teacher_temp=0.04, center_momentum=0.9, rate
1e-3) the loss stayed at ln K, and the teacher said the same of every image.
Cost: about 2.5 minutes of one CPU core.
Command: python tools/train.py configs/pretrain/bands/scenes14_dino_mm.py --cfg-options data_root=DATA
"""

_base_ = ["./dino_mm_vits8_100e.py", "../../_base_/demo_encoder.py"]

data_root = "work_dirs/demo/data"
split = "unlabelled"
epochs = 7
warmup_epochs = 1
effective_batch = 64
lr = 5e-4
sensor_drop = 0.5
local_views = 2
teacher_temp = 0.01
center_momentum = 0.5
precision = "auto"
expected_loss = None
model = dict(
    drop_path_rate=0.0,
    prototypes=1024,
    hidden=256,
    bottleneck=16,
    teacher_temp=teacher_temp,
    center_momentum=center_momentum,
    momentum=0.99,
    **_base_.encoder,
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        stand_in=True,
        drop=dict(p=sensor_drop),
        views=dict(global_size=48, local_size=24, local_views=local_views),
    ),
)
record = dict(method="DINO-MM" if sensor_drop else "DINO", dataset="embedded_scenes, 14 bands")
