"""The pretraining recipe for a folder or archive of small photographs: ViT-Tiny on patches of 16, for one CPU or GPU.

Kept of the published recipe: 4 crops of 112 pixels per image, masking, targets, optimiser. Changed: ViT-Tiny, a decoder
of 4 blocks and width 192, learning rate, batch and length; crops take at least 0.2 of the image's area, since the
photographs are hardly larger than a crop; bfloat16 or float32, whichever is measured to be faster at start.
"""

_base_ = "../pretrain.py"

data_root = "data/photos"
epochs = 100
warmup_epochs = 5
effective_batch = 256
lr = 1e-3
adversary_lr = 1e-3
precision = "auto"
model = dict(model="adpe_vit_tiny_patch16", decoder_embed_dim=192, decoder_depth=4, decoder_num_heads=3)
train_dataloader = dict(
    batch_size=64, num_workers=2, pin_memory=False, dataset=dict(source=data_root, crops=dict(scale=(0.2, 1.0)))
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(lr=lr), paramwise_cfg=dict(adversary_lr=adversary_lr))
record = dict(dataset="photographs")
