"""Backdoor robustness on CIFAR-10: hidden poisons against a linear head on frozen features, and blocking at test time.

Options: source, target: classes; trigger: its side; evaluation.rollout=matched|reference, .eps_space=pixel|normalised,
.pairing=greedy|reference (the reference's arithmetic).
Reproduces: no published number; the protocol is that of arXiv 2206.08477 scaled down (30 pixels of 224, 600 poisons).
Whoever reads it compares `asr` with `asr_clean`: where they are alike, the poisons moved nothing, and blocking has
nothing to repair. It says nothing of attacks that see training labels; configs/cifar10/backdoor_finetuned.py does.
Cost: not measured.
Command: python tools/evaluate.py configs/cifar10/backdoor.py CHECKPOINT --cfg-options data_root=ARCHIVE
"""

_base_ = "../_base_/classification/cifar10_classification.py"

source = "cat"
target = "dog"
trigger = 8
# An encoder file says its size.
model = dict(type="AdPEFrozenEncoder", model=None if _base_.pretrained else "adpe_vit_tiny_patch4", global_pool="token")
evaluation = dict(
    type="backdoor",
    source_class=source,
    target_class=target,
    victim="frozen",
    trigger=trigger,
    fixed=False,
    poisons=128,
    iterations=150,
    blocked_images=1000,
)
train_dataloader = dict(dataset=dict(transform=_base_.test_transform))
record = dict(task="robustness")
