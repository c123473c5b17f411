"""A small ViT-VQ tokenizer of the demo's scenes at 32 pixels, for configs/sequence/demo_captions.py.

Scenes: python -c "from adpe.data.scenes import write_scenes; write_scenes('work_dirs/scenes', 4000, 200, 4000)"
Reproduces: no published number; the recipe is that of configs/tokenizer/cifar10_vitvq.py.
Cost: not measured.
Command: python tools/train.py configs/tokenizer/demo_vitvq.py
"""

_base_ = "./cifar10_vitvq.py"

data_root = "work_dirs/scenes/unlabelled"
epochs = 40
train_dataloader = dict(
    dataset=dict(source=data_root, split=None, crops=dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0))
)
record = dict(dataset="embedded_scenes")
