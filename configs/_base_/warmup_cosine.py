"""A linear warm-up from 0, then half a cosine, by iteration (facebookresearch/mae util/lr_sched.py)."""

epochs = 100
warmup_epochs = 5
# Where the cosine ends: eta_min, or eta_min_ratio to the rate of each parameter group.
final_lr = dict(eta_min=0.0)
# start_factor: LinearLR multiplies step by step and cannot leave 0.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-8, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=warmup_epochs,
        end=epochs,
        T_max=epochs - warmup_epochs,
        convert_to_iter_based=True,
        **final_lr,
    ),
]
