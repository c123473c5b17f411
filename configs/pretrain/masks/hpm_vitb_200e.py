"""HPM (arXiv 2304.05919), ViT-B, 200 epochs: MAE whose hidden patches are, more and more, those of largest loss.

Reproduces: ImageNet top-1 83.0 after fine-tuning, ADE20K 42.1 mIoU (README of Haochen-Wang409/HPM; MAE in the same
setting 82.2 and 40.5).
Pixels are not normalised per patch. Batches of 2048 images are PRETRAIN.md's: 32 on 8 GPUs each, accumulated 8 times.
Cost: not measured. The teacher sees 197 tokens and the student 50, which both of its decoders see with all mask tokens:
equal epochs are not equal compute.
Command: tools/dist_train.sh configs/pretrain/masks/hpm_vitb_200e.py 8
"""

_base_ = "../../_base_/pretrain.py"

epochs = 200
warmup_epochs = 40
effective_batch = 2048
lr = 1.5e-4 * effective_batch / 256
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="hpm",
    model="adpe_vit_base_patch16",
    mask_ratio=0.75,
    norm_pix_loss=False,
    relative=True,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)
train_dataloader = dict(batch_size=32, dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(_delete_=True))
record = dict(method="HPM")
