"""DINO-MM on fourteen bands made of CIFAR-10's colours, ViT-Tiny: for trying out, without any data of satellites.

Options: sensor_drop=0.5; 0 is plain DINO on fourteen bands, the control.
Reproduces: no published number; the recipe is configs/pretrain/bands/dino_mm_vits8_100e.py scaled down.
Cost: not measured.
Command: python tools/train.py configs/pretrain/bands/cifar10_dino_mm.py --cfg-options data_root=ARCHIVE
"""

_base_ = "./dino_mm_vits8_100e.py"

data_root = "data/cifar10/cifar10-jpeg.tar.xz"
warmup_epochs = 5
effective_batch = 512
lr = 1e-3
sensor_drop = 0.5
precision = "auto"
expected_loss = None
model = dict(model="adpe_vit_tiny_patch4", img_size=32, prototypes=1024, hidden=512, bottleneck=128)
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    pin_memory=False,
    dataset=dict(
        stand_in=True,
        drop=dict(p=sensor_drop),
        views=dict(global_size=32, local_size=16, local_views=4),
    ),
)
record = dict(method="DINO-MM" if sensor_drop else "DINO", dataset="CIFAR-10, 14 bands")
