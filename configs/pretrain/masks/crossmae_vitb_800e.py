"""CrossMAE (arXiv 2401.14391), ViT-B, 800 epochs: hidden patches are decoded one by one, by cross-attention alone.

Options: predicted_ratio=0.75|0.25, the share of the patches that is predicted; the learning rate goes with it.
Reproduces: ImageNet top-1 83.722 after fine-tuning (README of TonyLianLong/CrossMAE, whose table has 0.75 for ViT-B and
whose command has 0.25; MAE 83.6). The decoder has 12 blocks, MAE's 8.
Differs: the weights that mix the encoder's blocks do not decay, and start at the mean of the blocks; the reference's
decay and start at random: model.reference=True.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/masks/crossmae_vitb_800e.py 4
"""

_base_ = "../../_base_/pretrain.py"

epochs = 800
predicted_ratio = 0.75
effective_batch = 4096
lr = 1.5e-4 * effective_batch / 256 * predicted_ratio / 0.75
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="crossmae",
    model="adpe_vit_base_patch16",
    mask_ratio=0.75,
    predicted_ratio=predicted_ratio,
    norm_pix_loss=True,
    decoder_embed_dim=512,
    decoder_depth=12,
    decoder_num_heads=16,
)
train_dataloader = dict(batch_size=1024, dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(_delete_=True))
record = dict(method="CrossMAE")
