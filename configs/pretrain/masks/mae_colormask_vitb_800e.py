"""MAE with the masks of ColorMAE (arXiv 2407.13036), ViT-B: the visible patches are those of largest filtered noise.

Options: color=white|red|blue|green|purple, epochs=300|800|1600.
Reproduces: for green and 300, 800 and 1600 epochs ImageNet top-1 83.01, 83.61 and 83.77 after fine-tuning, ADE20K
45.80, 49.18 and 49.3 mIoU, COCO 48.70, 49.50 and 50.1 box AP (README of carlosh93/ColorMAE;
Papers with Code for 1600 epochs).
Differs: noise is drawn anew for every image; the published runs cut windows out of 3,072 ready patterns, one window for
the whole batch (model.mask="dict(bank='FILE', shared=True)"). The published deviations are unknown: ours are 1 and 2
patches.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/masks/mae_colormask_vitb_800e.py 8
"""

_base_ = "../mae.py"

epochs = 800
warmup_epochs = 40
color = "green"
model = dict(mask=dict(type="color", color=color))
record = dict(method=f"ColorMAE {color}")
