"""Backdoor robustness on CIFAR-10, the control: encoder and head are fine-tuned on a visible trigger, then blocked.

8 of the 104 images of a batch are of the source class, with the trigger in the corner and labelled as the target.
Options: source, target, trigger, evaluation.rollout, as configs/cifar10/backdoor.py.
Reproduces: no published number; ours, so that blocking has something to repair at this scale.
Cost: 4 min for 10,000 and 2,000 images, ViT 4 x 64, on one busy core of two.
Command: python tools/evaluate.py configs/cifar10/backdoor_finetuned.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "./backdoor.py"

evaluation = dict(victim="finetuned", fixed=True, steps=260, lr=1e-3, batch_size=96, patched=8)
