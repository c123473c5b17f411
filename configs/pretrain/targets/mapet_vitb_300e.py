"""MaPeT (arXiv 2306.07346), ViT-B, 300 epochs and 10 at the end rate: tokens of permuted patches are predicted.

`tokenizer` is a file of tools/make_centroids.py: k-means of any encoder's patch features ("k-feat"), which is not the
paper's k-CLIP (features of CLIP RN50x64 at 448 pixels, 8192 centroids of 20 iterations, 5 restarts).
Reproduces: no number; the tables of the paper could not be read (published value unknown).
The rate is constant within an epoch, its cosine counted from the first. As published there is no crop but the central
square, and no flip; colours are jittered for the encoder alone. The total batch of the reference is not said; 2048 is
what its script configures.
Cost: not measured. A step has rows for 491 tokens instead of 197.
Tokens: python tools/make_centroids.py ENCODER data/imagenet/train --count 8192 --restarts 5 --out tokens.safetensors
Command: tools/dist_train.sh configs/pretrain/targets/mapet_vitb_300e.py 8 --cfg-options tokenizer=tokens.safetensors
"""

_base_ = "../../_base_/pretrain.py"

tokenizer = None
epochs = 300
cooldown_epochs = 10
warmup_epochs = 10
effective_batch = 2048
lr = 1.5e-3
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="mapet",
    model="adpe_vit_base_patch16",
    tokenizer=tokenizer,
    vocabulary=8192,
    least=50,
    drop_path_rate=0.1,
    color_jitter=0.4,
)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(crops=dict(size=224, num_crops=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)),
)
optim_wrapper = dict(
    optimizer=dict(lr=lr, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=3.0),
    paramwise_cfg=dict(_delete_=True),
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="seamed_cosine",
        total=epochs,
        warmup=warmup_epochs,
        first=1e-6 / 1.5e-3,
        last=1e-5 / 1.5e-3,
        lag=0,
        by_epoch=True,
    )
]
train_cfg = dict(by_epoch=True, max_epochs=epochs + cooldown_epochs)
record = dict(method="MaPeT")
