"""Parameter groups: who descends, who ascends, what decays."""

from __future__ import annotations

from typing import Any

from torch import nn

from adpe.methods.mae import MaskedAutoencoder


def parameter_groups(
    model: MaskedAutoencoder, lr: float, adversary_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of a masked autoencoder: decayed, not decayed (1-D tensors and biases), and the ascending adversary.

    Args:
        model: the masked autoencoder.
        lr: learning rate of the model.
        adversary_lr: learning rate of the adversary, which takes steps *up* the loss and has no weight decay.
        weight_decay: of matrices and tokens (MAE decays everything but 1-D tensors and biases).

    Returns:
        Groups for ``torch.optim.AdamW``, each with a ``name``; the adversary's has ``maximize=True``.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    adversary: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("adversary."):
            adversary.append(parameter)
        elif parameter.ndim <= 1 or name.endswith(".bias"):
            no_decay.append(parameter)
        else:
            decay.append(parameter)
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decay, "lr": lr, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "lr": lr, "weight_decay": 0.0},
    ]
    if adversary:
        ascent = {"lr": adversary_lr, "weight_decay": 0.0, "maximize": True}
        groups.append({"name": "adversary", "params": adversary, **ascent})
    return groups
