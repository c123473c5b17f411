"""The pretraining recipe for 800 epochs: 40 of linear warm-up from 0, then half a cosine to 0, by iteration (MAE)."""

_base_ = "./pretrain.py"

epochs = 800
warmup_epochs = 40
# start_factor: LinearLR multiplies step by step and cannot leave 0.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-8, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        begin=warmup_epochs,
        end=epochs,
        T_max=epochs - warmup_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=epochs)
