"""DropPos (arXiv 2309.03576), ViT-B, 800 epochs: one crop of 224 pixels, 49 of 196 patches seen, 12 of them with place.

Reproduces: ImageNet top-1 84.2 after fine-tuning for 100 epochs (README of Haochen-Wang409/DropPos; 83.0 after 200
epochs of pretraining).
Batches of 2048 images are PRETRAIN.md's, 64 on each of 32 GPUs; the repository's script has 8 GPUs. As in the
reference, targets are divided by the sum of the class's row, each tensor's gradient is clipped by itself, and all is
float32. The warm-up of ViT-L is 40 epochs.
Cost: not measured. The weights of patches are a forward pass of 197 tokens beside the student's 50 (attn_guide).
Command: tools/dist_train.sh configs/pretrain/positions/droppos_vitb_800e.py 8
"""

_base_ = "../../_base_/pretrain.py"

epochs = 800
warmup_epochs = 10
effective_batch = 2048
lr = 1.5e-4 * effective_batch / 256
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="droppos",
    model="adpe_vit_base_patch16",
    mask_ratio=0.75,
    pos_mask_ratio=0.75,
    sigma=1.0,
    smoothing="reference",
    attn_guide=True,
    decoder_embed_dim=512,
    decoder_depth=2,
    decoder_num_heads=16,
)
train_dataloader = dict(batch_size=64, dataset=dict(crops=dict(size=224, num_crops=1, scale=(0.2, 1.0))))
optim_wrapper = dict(
    type="OptimWrapper",
    clip_grad=dict(type="each", max_norm=5.0),
    optimizer=dict(lr=lr),
    paramwise_cfg=dict(_delete_=True),
)
record = dict(method="DropPos")
