"""MAE+ with the masks of ColorMAE, four crops of 24 pixels per image, ViT-Tiny on CIFAR-10.

Options: color=white|red|blue|green|purple.
Reproduces: nothing; no colour is published under MAE+. Deviations of the filters are half a patch and one, since the
grid has 6 x 6.
Cost: not measured.
Command: python tools/train.py configs/pretrain/masks/cifar10_mae_plus_colormask.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

color = "green"
sigma = None if color == "white" else 0.5 if color in ("red", "blue") else (0.5, 1.0)
model = dict(mask=dict(type="color", color=color, sigma=sigma))
record = dict(method=f"MAE+ {color} masks")
