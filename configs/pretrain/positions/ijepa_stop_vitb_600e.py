"""I-JEPA with stochastic positions (StoP, arXiv 2308.00566), ViT-B, 600 epochs, one crop of 224 pixels.

Options: position_noise_std=0.25 (None is I-JEPA, arXiv 2301.08243, without the noise).
Reproduces: no number; the paper's abstract has +1.7 of linear probing on ImageNet for ViT-B over I-JEPA, the README
none. Numbers are those of configs/pretrain/vit-b16.yaml of amirbar/StoP, in float32 as its README says (the file says
half precision). Its blur and greyscale are not here. What is exported is the moving average, as it is evaluated there.
Cost: not measured. The reference used 32 GPUs of 64 images.
Command: tools/dist_train.sh configs/pretrain/positions/ijepa_stop_vitb_600e.py 8
"""

_base_ = "../../_base_/pretrain.py"

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
    type="OptimWrapper",
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
