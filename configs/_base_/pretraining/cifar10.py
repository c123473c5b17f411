"""The pretraining recipe at the size of CIFAR-10: ViT-Tiny on patches of 4 pixels, for one CPU or GPU.

Kept of the published recipe: masking, targets, optimiser, 4 crops per image, and crops of fewer patches than the image
has (24 pixels, 6 x 6 patches, of 8 x 8; published 7 x 7 of 14 x 14). Changed: crops take at least 0.2 of the image's
area instead of 0.08 (less is 9 pixels wide, blown up), a decoder of 4 blocks, learning rate, batch and length;
bfloat16 or float32, whichever is measured to be faster at start. The images are decoded into the cache folder once, and
cropped in batch.
"""

_base_ = "../pretrain.py"

data_root = "data/cifar10/cifar10-jpeg.tar.xz"
epochs = 100
warmup_epochs = 5
effective_batch = 512
lr = 1e-3
adversary_lr = 1e-3
precision = "auto"
model = dict(model="adpe_vit_tiny_patch4", img_size=32, decoder_embed_dim=192, decoder_depth=4, decoder_num_heads=3)
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    pin_memory=False,
    dataset=dict(source=data_root, split="train", cache=True, crops=dict(size=24, scale=(0.2, 1.0))),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(lr=lr), paramwise_cfg=dict(adversary_lr=adversary_lr))
record = dict(dataset="CIFAR-10")
