"""AdPE (arXiv 2303.07598): MAE+ with an adversary that moves the positions of hidden patches.

Options: size=base|large|huge, position=absolute|relative, adversary=coordinate|embedding, epochs=400|1600.
Reproduces: ImageNet top-1 after fine-tuning, 1600 epochs (README of the AdPE repository; arXiv 2303.07598):
    ViT-B  absolute  embedding 84.1, coordinate 84.2
    ViT-B  relative  embedding 84.3, coordinate 84.4
    ViT-L  relative  coordinate 86.3
ViT-H with relative coordinates is announced there without a number ("waiting"); MAE's ViT-H reaches 86.9. No number is
published for other combinations and lengths that we know of.
The norm and bound of the published adversary are not known: none here (model.adversary_norm, model.adversary_epsilon).
The reference's adversary on relative embeddings is cancelled by the softmax; this one perturbs the keys of masked
patches. The reference's is model.adversary_variant=reference.
Cost: not measured. The reference trained ViT-B on one machine of 8 V100 (32 GB), accumulating 4 steps, or 4 of them.
Command: tools/dist_train.sh configs/pretrain/adpe.py 8
"""

_base_ = "./mae_plus.py"

adversary = "coordinate"
