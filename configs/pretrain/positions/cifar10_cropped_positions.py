"""MAE+ on cropped positions, ViT-Tiny on CIFAR-10; otherwise configs/pretrain/cifar10_mae_plus.py.

Reproduces: no published number; RO-ViT (arXiv 2305.07011) crops positions in a training on images and text.
Cost: not measured.
Command: python tools/train.py configs/pretrain/positions/cifar10_cropped_positions.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="cropped_positions",
    model="adpe_vit_tiny_patch4",
    img_size=32,
    decoder_embed_dim=192,
    decoder_depth=4,
    decoder_num_heads=3,
)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
record = dict(method="MAE+ cropped positions")
