"""AdPE, relative positions, embedding adversary, ViT-L, 400 epochs.

Reproduces: no number is published that we know of.
Unlike the reference's adversary, which the softmax does not see, this one acts: it perturbs the keys of masked
patches. The reference's is model.adversary_variant=reference.
The norm and bound of the published adversary are not known: none here (model.adversary_norm,
model.adversary_epsilon).
Cost: not measured.
Command: tools/dist_train.sh configs/pretrain/adpe_rpe_embedding_vitl_400e.py 8
"""

_base_ = "../_base_/pretrain_400e.py"

model = dict(model="adpe_vit_large_patch16", position="relative", adversary="embedding")
train_dataloader = dict(batch_size=64)
record = dict(method="AdPE RPE embedding")
