"""MAE+ that hides blocks of 2 x 2 patches, as Pixio (arXiv 2512.15715) does, ViT-Tiny on CIFAR-10.

Options: side=1|2|3, patches along a block.
Reproduces: nothing; blocks are not published under MAE+. Of the 9 blocks of four crops of 24 pixels 2 stay visible.
Cost: not measured.
Command: python tools/train.py configs/pretrain/masks/cifar10_mae_plus_blocks.py --cfg-options data_root=ARCHIVE
"""

_base_ = "../../_base_/pretraining/cifar10.py"

side = 2
model = dict(mask=dict(type="block", side=side))
record = dict(method=f"MAE+ blocks of {side}")
