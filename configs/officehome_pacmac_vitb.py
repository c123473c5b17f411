"""PACMAC on OfficeHome, ViT-B: 100 epochs on the source, 100 of adaptation to the target (arXiv 2206.08222).

Class folders per domain: data_root/{Art,Clipart,Product,Real World}/<class>/<image>. source, target: two of them.
Reproduces: the protocol; no number of the paper's tables could be read. The rates are those of the published commands:
the minimum 2e-4 is the base rate times the batch in both trainings, so that the cosine is flat after the warm-up.
Other shifts: --cfg-options source=Art target=Product, or DomainNet's 40 classes with data_root= and num_classes=40.
Baselines: source-only, oracle, confidence alone; evaluation.baselines=[oracle,confidence,random_views] adds a control.
In-domain pretraining, on both domains pooled and without labels (published: 800 epochs from MAE's ImageNet checkpoint,
base rate 1e-4, batch 1024, weight decay 0.05, pixels not normalised, 3 operations of RandAugment of severity 4):
tools/dist_train.sh configs/pretrain/mae.py 4 --cfg-options data_root=[ROOT/Clipart,ROOT/Product] epochs=800
effective_batch=1024 lr=4e-4 model.norm_pix_loss=False load_from=CHECKPOINT. Its crops are MAE's, without RandAugment.
Differs: float32; a fifth of the target's images of every class is held out for the test, the rest adapts;
no_agreement="drop" leaves out images that the reference lets dilute its loss (evaluation.no_agreement=reference has
them); RandAugment is timm's, of magnitude 2 of 10; bilinear.
Cost: not measured.
Command: python tools/evaluate.py configs/officehome_pacmac_vitb.py ENCODER --cfg-options data_root=ROOT
"""

_base_ = "./_base_/classification/imagenet_classification.py"

data_root = "data/officehome"
source = "Clipart"
target = "Product"
num_classes = 65
# The aspect is not kept.
squashed = dict(input_size=_base_.image_size, interpolation="bilinear", crop_pct=1.0, crop_mode="squash")
augmentation = dict(resize=256, crop=_base_.image_size, hflip=0.5, rand_augment="rand-m2-n1-p1-inc1")
# An encoder file says its size.
model = dict(
    type="AdPEFrozenEncoder",
    model=None if _base_.pretrained else "adpe_vit_base_patch16",
    num_classes=num_classes,
    learned_pos_embed=True,
    drop_path_rate=0.1,
)
evaluation = dict(
    type="pacmac",
    # 4 x 256 images a step; 4 x 64 and as many of the target's.
    finetune=dict(
        epochs=100,
        batch_size=1024,
        process_batch=256,
        blr=5e-5,
        min_lr=2e-4,
        warmup_epochs=5,
        layer_decay=0.65,
        weight_decay=0.05,
    ),
    adapt=dict(
        epochs=100,
        batch_size=512,
        process_batch=64,
        blr=1e-4,
        min_lr=2e-4,
        warmup_epochs=5,
        layer_decay=0.65,
        weight_decay=0.05,
    ),
    views=2,
    mask_ratio=0.75,
    threshold=0.5,
    weight=0.1,
    label_smoothing=0.1,
    probe_mode="train",
)
train_dataloader = dict(
    dataset=dict(
        type="AdPEDomainDataset",
        source=data_root,
        split=source,
        num_classes=num_classes,
        transform=squashed,
        view="augmented",
        augmentation=augmentation,
    )
)
target_dataloader = dict(
    num_workers=8,
    dataset=dict(
        type="AdPEDomainDataset",
        source=data_root,
        split=target,
        num_classes=num_classes,
        transform=squashed,
        view="pair",
        augmentation=augmentation,
        part=dict(of=5, take=[0, 1, 2, 3]),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="AdPEDomainDataset",
        source=data_root,
        split=target,
        num_classes=num_classes,
        transform=squashed,
        part=dict(of=5, take=[4]),
    )
)
record = dict(task="adaptation", dataset=f"OfficeHome {source} -> {target}")
