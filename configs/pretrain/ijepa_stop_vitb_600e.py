"""I-JEPA with stochastic positions (StoP, arXiv 2308.00566), ViT-B, 600 epochs, one crop of 224 pixels.

Options: position_noise_std=0.25 (None is I-JEPA, arXiv 2301.08243, without the noise).
Reproduces: no number; the paper's abstract has +1.7 of linear probing on ImageNet for ViT-B over I-JEPA, its README none.
Rates of 2e-4, 8e-4 at the warm-up's end and 1e-4 at the end, a weight decay from 0.04 to 0.4, batches of 2048 images
are those of the configs of amirbar/StoP. Not here: its blur and greyscale.
Cost: not measured. The reference used 32 GPUs of 64 images.
Command: tools/dist_train.sh configs/pretrain/ijepa_stop_vitb_600e.py 8
"""

_base_ = "../_base_/pretrain.py"

epochs = 600
warmup_epochs = 15
effective_batch = 2048
lr = 8e-4 * effective_batch / 2048
position_noise_std = 0.25
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="ijepa",
    model="adpe_vit_base_patch16",
    predictor_embed_dim=384,
    predictor_depth=6,
    position_noise_std=position_noise_std,
    targets=4,
    momentum=0.996,
)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.3, 1.0), interpolation="bilinear")),
)
optim_wrapper = dict(
    optimizer=dict(lr=lr, betas=(0.9, 0.999), weight_decay=0.04),
    paramwise_cfg=dict(_delete_=True),
)
param_scheduler = [
    dict(
        type="AdPEFormulaScheduler",
        formula="warmup_cosine",
        total=epochs,
        warmup=warmup_epochs,
        first=2e-4 / 8e-4,
        last=1e-4 / 8e-4,
        convert_to_iter_based=True,
    ),
    dict(
        type="AdPEFormulaScheduler",
        formula="warmup_cosine",
        param_name="weight_decay",
        total=epochs,
        last=0.4 / 0.04,
        convert_to_iter_based=True,
    ),
]
record = dict(method="I-JEPA StoP" if position_noise_std else "I-JEPA")
