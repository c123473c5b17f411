"""DINO-MM (arXiv 2204.05381), ViT-S/8, 100 epochs: DINO on 12 optical and 2 radar bands, one sensor dropped at times.

`data_root` has a folder ``train`` of ``.npy`` files, bytes (height, width, 14), bands in the order of
`adpe.data.views.multiband`, whose functions make bytes of reflectances and decibels.
Options: overflow="wrap", solarize="below" and grey="all" are the repository's own, defects among them.
Reproduces: no number; the table of the paper could not be read (published value unknown). The log of zhu-xlab/DINO-MM
has a mean loss of 10.11 in the first epoch, 4.88 in epoch 30 and 3.79 in epoch 95, with its own augmentation.
Batches of 256 images are 64 on each of 4 GPUs, float32.
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/bands/dino_mm_vits8_100e.py 4 --cfg-options data_root=FOLDER
"""

_base_ = "../../_base_/pretraining/dino.py"

data_root = "data/bigearthnet_mm"
split = "train"
epochs = 100
effective_batch = 256
lr = 5e-4 * effective_batch / 256
overflow = "clip"
solarize = "above"
grey = "sensor"
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="dino",
    model="adpe_vit_small_patch8",
    img_size=112,
    in_chans=14,
    drop_path_rate=0.1,
    prototypes=65536,
    teacher_temp=0.04,
    momentum=0.996,
    freeze_last_layer=1,
    norm_last_layer=True,
    data_preprocessor=dict(type="AdPECropsPreprocessor", mean=(0.0,) * 14, std=(1.0,) * 14),
)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type="AdPEMultiBandDataset",
        source=data_root,
        split=split,
        groups=dict(radar=[12, 13], optical=list(range(12))),
        drop=dict(p=0.5),
        views=dict(
            global_size=112,
            local_size=48,
            local_views=8,
            global_scale=(0.4, 1.0),
            local_scale=(0.05, 0.4),
            overflow=overflow,
            solarize=solarize,
            grey=grey,
        ),
        seed=_base_.seed,
    ),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(lr=lr))
# Epochs 0, 10, 30, 60, 90 and 95 of the published log, counted from 1.
expected_loss = [[1, 10.11], [11, 6.45], [31, 4.88], [61, 4.27], [91, 3.83], [96, 3.79]]
record = dict(method="DINO-MM", dataset="BigEarthNet-MM")
