"""Heads that say which labels an image has: dual prompts over its regions, and one linear layer on their mean.

Both give logits ``(B, 2, C)`` of absence and presence, so that one loss and one probability fits them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from adpe.evaluations.heads.dual_prompts import aggregate, region_maps
from adpe.evaluations.linear_probe import probe_head
from adpe.evaluations.multi_label.class_texts import PromptTexts, TableTexts

Weights = Literal["softmax", "uniform"]
Prompts = Literal["dual", "positive"]


class LinearLabels(nn.Module):
    """BatchNorm without affine parameters and a linear layer, as :func:`probe_head`; the logit of absence is 0.

    Args:
        width: channels F.
        classes: C.
        init_std: of the linear layer.
        batch_norm: False for the linear layer alone.
    """

    def __init__(self, width: int, classes: int, init_std: float = 0.01, batch_norm: bool = True) -> None:
        super().__init__()
        layers = probe_head(width, classes, init_std)
        self.layers: nn.Module = layers if batch_norm else layers[1]

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, F)`` to logits ``(B, 2, C)``."""
        present = self.layers(features)
        return torch.stack([torch.zeros_like(present), present], dim=1)


class DualPromptHead(nn.Module):
    """DualCoOp (arXiv 2206.09541) on the patches of any encoder, whose projection to the text's space is learned.

    The published system takes CLIP's own projection, frozen. Here a BatchNorm without affine parameters and a linear
    layer stand in its place: a linear probe inside, by which the head can learn where the text side knows nothing.

    Args:
        width: channels F of the patches.
        texts: of C classes.
        region_scale: of cosines under the softmax over regions; 20 published.
        logit_scale: of the aggregated ones; 5 published.
        weights: "softmax" of the positive prompt over regions, or "uniform", the control.
        prompts: "dual", or "positive" alone with a logit of 0 for absence, the control.
    """

    def __init__(
        self,
        width: int,
        texts: PromptTexts | TableTexts,
        region_scale: float = 20.0,
        logit_scale: float = 5.0,
        weights: Weights = "softmax",
        prompts: Prompts = "dual",
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False)
        self.projection = nn.Linear(width, texts.joint)
        self.texts = texts
        self.region_scale, self.logit_scale, self.weights, self.prompts = region_scale, logit_scale, weights, prompts

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches ``(B, N, F)`` to logits ``(B, 2, C)`` and weights ``(B, C, 1 + N)``, the mean's first."""
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        regions = self.projection(self.norm(tokens.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
        maps = region_maps(regions, self.texts(), self.region_scale)
        logits, weights = aggregate(maps, self.logit_scale, uniform=self.weights == "uniform")
        if self.prompts == "positive":
            logits = torch.stack([torch.zeros_like(logits[:, 1]), logits[:, 1]], dim=1)
        return logits, weights
