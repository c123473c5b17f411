"""SemMAE (arXiv 2206.10207), ViT-B, 800 epochs, patches of 16: masks drift from shares of every part to whole parts.

The paper's part labels were not released and cannot be made again; `parts` is a file of tools/make_centroids.py, whose
encoder's pretraining is part of the cost, as iBOT's is of the published numbers.
Reproduces: ImageNet top-1 83.352 after fine-tuning (README of ucasligang/SemMAE; patches of 8 have 84.444). ADE20K 46.3
mIoU as M2PT quotes it, 44.9 as ColorMAE does: the two contradict each other.
Given maps instead of `parts`: maps=FOLDER num_parts=K, see adpe/data/views/part_maps.py.
Cost: not measured. The reference used 64 GPUs of 128 images. The labels cost one forward pass of the frozen encoder.
Parts: python tools/make_centroids.py ENCODER data/imagenet/train --count 7 --out parts.safetensors
Command: tools/dist_train.sh configs/pretrain/masks/semmae_vitb_800e.py 8 --cfg-options parts=parts.safetensors
"""

_base_ = "../../_base_/pretrain.py"

parts = None
maps = None
num_parts = None
epochs = 800
warmup_epochs = 40
effective_batch = 8192
lr = 1.5e-4 * effective_batch / 256
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="semmae",
    model="adpe_vit_base_patch16",
    parts=parts,
    num_parts=num_parts,
    mask_ratio=0.75,
    norm_pix_loss=True,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)
train_dataloader = dict(
    dataset=dict(
        crops=dict(size=224, num_crops=1, scale=(0.2, 1.0)),
        maps=dict(folder=maps, num_parts=num_parts) if maps else None,
    )
)
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(_delete_=True))
record = dict(method="SemMAE")
