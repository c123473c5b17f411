"""PACMAC on a stand-in of two domains: CIFAR-10 as it is, and other images of it in a fixed style (synthetic shift).

Source: training images of even number, with labels. Target: those of odd number as grey outlines (style=edges; or
style=noise), without; its test images are the test set's in that style (adpe/data/views/styles.py). Source-only, oracle
and confidence alone stand beside PACMAC. docs/evaluations/pacmac.md says what may be concluded.
Options: style=edges|noise, train_limit: images of each domain, test_limit, evaluation.no_agreement=drop|reference,
evaluation.probe_mode=train|eval, evaluation.baselines=[oracle,confidence,random_views], evaluation.views=3.
In-domain pretraining, on both domains pooled and without labels: any configs/pretrain/cifar10_*.py with the style,
python tools/train.py configs/pretrain/cifar10_mae.py --cfg-options train_dataloader.dataset.style=edges
Reproduces: no published number; configs/officehome_pacmac_vitb.py scaled down. Changed: data, encoder, lengths, and
rates that fall, for an encoder that starts from little or no pretraining.
Cost: not measured.
Command: python tools/evaluate.py configs/cifar10/pacmac.py ENCODER --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

style = "edges"
train_limit = 4000
test_limit = 2000
# An encoder file says its size.
size = {} if _base_.pretrained else dict(embed_dim=64, depth=4, num_heads=2)
model = dict(
    type="AdPEFrozenEncoder",
    model=None if _base_.pretrained else "adpe_vit_tiny_patch4",
    num_classes=_base_.num_classes,
    learned_pos_embed=True,
    drop_path_rate=0.1,
    **size,
)
evaluation = dict(
    type="pacmac",
    finetune=dict(
        epochs=10, batch_size=128, process_batch=128, blr=2e-3, min_lr=1e-5, warmup_epochs=1, layer_decay=0.75
    ),
    adapt=dict(epochs=5, batch_size=128, process_batch=128, blr=1e-3, min_lr=1e-5, warmup_epochs=1, layer_decay=0.75),
    views=2,
    mask_ratio=0.75,
    threshold=0.5,
    weight=0.1,
)
augmentation = dict(
    resize=_base_.image_size * 8 // 7, crop=_base_.image_size, hflip=0.5, rand_augment="rand-m2-n1-p1-inc1"
)
train_dataloader = dict(
    dataset=dict(
        type="AdPEDomainDataset",
        transform=_base_.test_transform,
        view="augmented",
        augmentation=augmentation,
        part=dict(of=2, take=[0]),
        limit=train_limit,
    )
)
target_dataloader = dict(
    batch_size=512,
    num_workers=0,
    dataset=dict(
        type="AdPEDomainDataset",
        source=_base_.data_root,
        split="train",
        num_classes=_base_.num_classes,
        transform=_base_.test_transform,
        view="pair",
        augmentation=augmentation,
        part=dict(of=2, take=[1]),
        style=style,
        limit=train_limit,
    ),
)
val_dataloader = dict(dataset=dict(type="AdPEDomainDataset", style=style, limit=test_limit))
record = dict(task="adaptation", dataset=f"CIFAR-10 -> CIFAR-10 {style} (synthetic shift)")
