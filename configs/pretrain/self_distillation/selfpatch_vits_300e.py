"""SelfPatch (arXiv 2206.07990), ViT-S, 300 epochs: DINO whose patches also learn from their most similar neighbours.

Options: neighbourhood="inside"; "torus" wraps round the edges as the repository does.
Reproduces: COCO Mask R-CNN 1x 42.1 box AP and 38.5 mask AP, ADE20K UperNet 43.2 mIoU (README of alinlab/SelfPatch; DINO
in the same setting 40.8, 37.3 and 42.3).
Batches of 1024 images are 128 on each of 8 GPUs. bfloat16 here, float16 there.
Cost: not measured. The teacher sees all ten crops.
Command: tools/dist_train.sh configs/pretrain/self_distillation/selfpatch_vits_300e.py 8
"""

_base_ = "../../_base_/pretraining/dino.py"

neighbourhood = "inside"
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="selfpatch",
    model="adpe_vit_small_patch16",
    drop_path_rate=0.1,
    prototypes=65536,
    patch_prototypes=4096,
    neighbours=4,
    neighbourhood=neighbourhood,
    patch_loss_weight=0.1,
    teacher_temp=0.04,
    momentum=0.996,
    freeze_last_layer=1,
    norm_last_layer=True,
)
record = dict(method="SelfPatch")
