"""Pixio (arXiv 2512.15715), ViT-H/16 at 256 pixels, 400 epochs: MAE that hides blocks of 4 x 4 patches.

Eight class tokens, learned positions and a decoder of 32 blocks. The repository's "ImageNet" epochs have 1605
iterations of 8192 images: 13.1 million, which is ImageNet-21k and not ImageNet-1k (our inference).
Reproduces: no published number; those of the README are of two billion other images.
Cost: not measured (published: batches of 64 on 128 GPUs).
Command: tools/slurm_train.sh PARTITION configs/pretrain/masks/pixio_vith_400e.py 128
"""

_base_ = "../../_base_/pretrain.py"

data_root = "data/imagenet21k/train"
epochs = 400
warmup_epochs = 40
effective_batch = 8192
lr = 2.5e-5 * effective_batch / 256
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="mae",
    model="adpe_vit_huge_patch16",
    img_size=256,
    learned_pos_embed=True,
    num_class_tokens=8,
    drop_path_rate=0.4,
    mask_ratio=0.75,
    norm_pix_loss=True,
    mask=dict(type="block", side=4),
    decoder_embed_dim=512,
    decoder_depth=32,
    decoder_num_heads=16,
    decoder_learned_pos_embed=True,
)
train_dataloader = dict(
    batch_size=64, dataset=dict(source=data_root, crops=dict(size=256, num_crops=1, scale=(0.2, 1.0)))
)
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(_delete_=True))
record = dict(method="Pixio", dataset="ImageNet-21k")
