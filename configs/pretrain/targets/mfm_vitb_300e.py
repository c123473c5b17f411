"""MFM (arXiv 2206.07706), ViT-B, 300 epochs: one crop of 224 pixels, frequencies beyond a radius of 16 removed or kept.

Reproduces: ImageNet top-1 83.1 after fine-tuning for 100 epochs (README of Jiahao000/MFM).
The rate's warm-up is linear, its cosine counted from the first step (a seam of 1.1 %), as in the reference.
Cost: not measured. The reference used 16 GPUs of 128 images.
Command: tools/dist_train.sh configs/pretrain/targets/mfm_vitb_300e.py 8
"""

_base_ = "../../_base_/pretrain.py"

epochs = 300
warmup_epochs = 20
effective_batch = 2048
lr = 3e-4 * effective_batch / 512
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="mfm",
    model="adpe_vit_base_patch16",
    radius=16,
    low_pass_probability=0.5,
)
train_dataloader = dict(dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
optim_wrapper = dict(
    clip_grad=dict(max_norm=3.0),
    optimizer=dict(lr=lr),
    paramwise_cfg=dict(_delete_=True),
    constructor="AdPEPretrainingConstructor",
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="seamed_cosine",
        total=epochs,
        warmup=warmup_epochs,
        first=2.5e-7 / 3e-4,
        last=2.5e-6 / 3e-4,
        lag=1,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(by_epoch=True, max_epochs=epochs)
record = dict(method="MFM")
