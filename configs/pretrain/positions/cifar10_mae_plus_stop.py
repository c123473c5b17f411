"""MAE+ with stochastic positions, ViT-Tiny on CIFAR-10; otherwise configs/pretrain/cifar10_mae_plus.py.

Options: form=tied|free|coordinate, position_noise_std=0.25.
Reproduces: no published number, as configs/pretrain/positions/mae_plus_stop_vitb_400e.py says.
Cost: not measured.
Command: python tools/train.py configs/pretrain/positions/cifar10_mae_plus_stop.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

form = "tied"
position_noise_std = 0.25
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="stop_mae_plus",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    form=form,
    position_noise_std=position_noise_std,
    decoder_embed_dim=192,
    decoder_depth=4,
    decoder_num_heads=3,
)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
record = dict(method=f"MAE+ StoP {form}")
