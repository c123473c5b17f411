"""EP on ImageNet: 32 queries attend to ViT-B's patch tokens, 90 epochs of batch 4096 on a frozen encoder.

Reproduces: Efficient Probing (arXiv 2506.10178, results.csv of its repository): MAE ViT-B, top-1 75.5 (linear probe
67.8); SimMIM 64.9, MaskFeat 71.8, BEiTv2 81.4. With the class token among the tokens (--cfg-options
evaluation.class_token=True): MoCo v3 76.5, DINO 77.4, iBOT 79.0. Tokens are read before the final norm, as there.
Expected on MAE ViT-B, from its log (logs/mae_base/ep.txt): training loss 1.71 and validation top-1 63.0 after 5 epochs,
1.14 and 68.9 after 23, which are 5 % and 25 % of the run; 0.89 and 75.35 at the end.
Differs: the last epoch counts (published: the best on the test set); float32 (published: float16); the batch norm sees
the whole batch (published: 256 images a process); crops in up to ten attempts, as torchvision does.
Cost: not measured; every image passes through the encoder in every epoch, in one process.
Command: python tools/evaluate.py configs/imagenet/ep_vitb.py ENCODER
"""

_base_ = "../_base_/classification/imagenet_classification.py"

# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_base_patch16")
evaluation = dict(
    type="efficient_probe",
    num_queries=32,
    d_out=1,
    class_token=False,
    final_norm=False,
    epochs=90,
    warmup_epochs=10,
    blr=0.1,
    batch_size=4096,
    weight_decay=0.0,
    cached=False,
)
train_dataloader = dict(
    dataset=dict(
        transform=dict(
            input_size=_base_.image_size, is_training=True, color_jitter=None, hflip=0.5, interpolation="bicubic"
        )
    )
)
