"""MAE+ with stochastic positions (StoP, arXiv 2308.00566), ViT-B, 400 epochs: Gaussian noise, and no adversary.

Options: form=tied|free|coordinate, position_noise_std=0.25 (for "coordinate" in patches: 0.29 is the deviation of a
uniform draw from +-0.5).
Reproduces: nothing; StoP is published for I-JEPA alone (configs/pretrain/positions/ijepa_stop_vitb_600e.py). Crops,
masks and optimiser are those of configs/pretrain/mae_plus.py, so that a learned shift, one random shift, noise and none
compare.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/positions/mae_plus_stop_vitb_400e.py 8
"""

_base_ = "../../_base_/pretrain.py"

epochs = 400
form = "tied"
position_noise_std = 0.25
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="stop_mae_plus",
    model="adpe_vit_base_patch16",
    form=form,
    position_noise_std=position_noise_std,
    mask_ratio=0.75,
    norm_pix_loss=True,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
record = dict(method=f"MAE+ StoP {form}")
