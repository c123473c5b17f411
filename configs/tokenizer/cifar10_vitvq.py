"""A small ViT-VQ tokenizer of CIFAR-10: 32 pixels, patches of 4, 256 codes of 8 numbers by moving averages.

Its file, tokenizer.safetensors in the work directory, is what tokenizer= of configs/pretrain/targets/cifar10_mapet.py
takes.
Reproduces: no published number; the recipe is configs/tokenizer/vitvq_small_imagenet256.py scaled down.
Cost: 5 minutes of a CPU core a pass in bfloat16. One pass (epochs=1 warmup_epochs=0.1), seeds 0 to 2, 2,000 test images
gave 18.9 ± 0.5 dB (the mean colour of an image: 14.4 dB), all of the 256 codes in use.
Command: python tools/train.py configs/tokenizer/cifar10_vitvq.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/pretraining/cifar10.py"

epochs = 20
warmup_epochs = 1
effective_batch = 128
lr = 1e-3
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="vitvq",
    model="vitvq",
    img_size=32,
    patch_size=4,
    dim=96,
    depth=4,
    num_heads=4,
    head_dim=24,
    codes=256,
    code_dim=8,
    l1=0.1,
    l2=1.0,
)
train_dataloader = dict(dataset=dict(crops=dict(size=32, num_crops=1, scale=(0.5, 1.0))))
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.99), weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
record = dict(method="ViT-VQ tokenizer")
