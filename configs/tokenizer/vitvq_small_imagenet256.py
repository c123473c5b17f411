"""ViT-VQGAN's small tokenizer (arXiv 2110.04627): 256 pixels, patches of 8, 8192 codes of 32 numbers.

Squared error, 0.1 of the logit-Laplace likelihood, and the codebook's loss; without the perceptual and the adversarial
loss of the paper, which need other weights and a second optimiser. Optimiser, sizes and codebook are the paper's as
secondary sources give them; batch, length, warm-up, schedule and crops are ours.
Reproduces: no number; the paper's reconstruction FID of 1.28 is with the losses that are left out.
Cost: not measured.
Command: tools/dist_train.sh configs/tokenizer/vitvq_small_imagenet256.py 8
"""

_base_ = "../_base_/pretrain.py"

epochs = 100
warmup_epochs = 10
effective_batch = 256
lr = 1e-4
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="vitvq",
    model="vitvq",
    img_size=256,
    patch_size=8,
    dim=512,
    depth=8,
    num_heads=8,
    head_dim=64,
    codes=8192,
    code_dim=32,
    codebook="gradient",
    l2=1.0,
    laplace=0.1,
)
train_dataloader = dict(batch_size=32, dataset=dict(crops=dict(size=256, num_crops=1, scale=(0.25, 1.0))))
optim_wrapper = dict(optimizer=dict(lr=lr, betas=(0.9, 0.99), weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
record = dict(method="ViT-VQ tokenizer")
