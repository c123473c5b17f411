"""The recipe of SDSSL at the size of CIFAR-10: two crops of 24 pixels, patches of 4, 256 images a step in one pass.

Kept of the published recipe: two views in colours of their own, losses, schedules. Changed: crops take at least 0.2 of
the image's area, no blur, which leaves nothing of 24 pixels; width of the heads, rate, batch, length and, for 100
epochs, the teacher's momentum; bfloat16 or float32, whichever is measured to be faster at the beginning.
"""

_base_ = "./sdssl.py"

data_root = "data/cifar10/cifar10-jpeg.tar.xz"
epochs = 100
warmup_epochs = 5
effective_batch = 256
lr = 5e-4
precision = "auto"
sharp = dict(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0.0)
colors = [sharp, dict(solarize_p=0.2, **sharp)]
model = dict(model="adpe_vit_tiny_patch4", img_size=24, out_dim=128, hidden=1024, momentum=0.99)
train_dataloader = dict(
    batch_size=256,
    num_workers=2,
    pin_memory=False,
    dataset=dict(source=data_root, split="train", cache=True, crops=dict(size=24, scale=(0.2, 1.0), color=colors)),
)
record = dict(dataset="CIFAR-10")
