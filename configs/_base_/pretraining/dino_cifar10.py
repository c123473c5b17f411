"""The recipe of DINO at the size of CIFAR-10: two crops of 32 pixels and four of 16, patches of 4.

Kept of the published recipe: crops of two sizes, colours, schedules, clipping. Changed: no blur, which leaves nothing
of 32 pixels; prototypes, width of the head, batch, length and, for 100 epochs, the teacher's momentum; bfloat16 or
float32, whichever is measured to be faster at the beginning.
"""

_base_ = "./dino.py"

data_root = "data/cifar10/cifar10-jpeg.tar.xz"
epochs = 100
warmup_epochs = 5
effective_batch = 512
lr = 1e-3
precision = "auto"
sharp = dict(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0.0)
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    pin_memory=False,
    dataset=dict(
        source=data_root,
        split="train",
        cache=True,
        crops=[
            dict(
                size=32,
                num_crops=2,
                scale=(0.25, 1.0),
                normalize="device",
                color=[sharp, dict(solarize_p=0.2, **sharp)],
            ),
            dict(size=16, num_crops=4, scale=(0.05, 0.25), normalize="device", color=sharp),
        ],
    ),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(lr=lr))
record = dict(dataset="CIFAR-10")
