"""UperNet with ViT-B on ADE20K, 512 x 512, 160k iterations of batch 16.

Reproduces: AdPE, 50.7 mIoU *implied* by the abstract of arXiv 2303.07598 (+2.6 over MAE, whose paper gives 48.1);
whether single- or multi-scale is not said. Its README trains and tests with mmseg's ..._ms.py config, so 50.7 may be
multi-scale: compare both metrics (tools/test.py --tta gives the second). MAE in this protocol: 48.13 single-scale and
48.70 multi-scale (mmseg's configs/mae, lr 1e-4), 48.15 single-scale (implus/mae_segmentation, lr 1e-4). The AdPE
repository gives lr 2e-4 and says to search 5e-5..3e-4, so compare methods over the same learning rates:
--cfg-options lr=1e-4.
Differs from mmseg's MAE: no BEiT-style relative bias, no LayerScale (there init_values=1.0, so that it starts without
effect; 0.1 is the default of mmseg's class, not its MAE), since neither MAE nor AdPE pretrains with them: --cfg-options
model.backbone.use_rel_pos_bias=True model.backbone.init_values=1.0 gives mmseg's encoder (with a checkpoint, name what
it lacks: model.backbone.init_cfg.allow_missing='["blocks.*.ls?.gamma","blocks.*.relative_position_bias_table"]').
Cost: not measured (mmseg: 9.96 GB for 2 images per GPU on V100).
Command: tools/dist_train.sh configs/ade20k_upernet_vitb.py 8 --cfg-options pretrained=ENCODER
"""

_base_ = "./_base_/ade20k_upernet.py"
