"""Choosers of patches for saliency-guided attention: spectral residual, and the controls it is held against.

A chooser takes pixels ``(B, 3, H, W)`` in [0, 1] and gives a score to every patch, ``(B, L)``. The spectral residual is
after Hou and Zhang (CVPR 2007), in the form written out here; it is computed in float64, since float32 exchanges
patches at the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Chooser = Callable[[Tensor, int], Tensor]

_CELLS, _SIGMA, _TAPS = 4, 2.0, 9
_GREY = (0.299, 0.587, 0.114)


def working_image(pixels: Tensor, patch_size: int) -> Tensor:
    """Grey pixels at four cells along a patch, without the image's mean: ``(B, 4 h, 4 w)`` float64."""
    weights = torch.tensor(_GREY, dtype=torch.float64, device=pixels.device)
    grey = torch.einsum("bchw,c->bhw", pixels.double(), weights)
    h, w = pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size
    small = F.adaptive_avg_pool2d(grey[:, None], (_CELLS * h, _CELLS * w))[:, 0]
    return small - small.mean(dim=(1, 2), keepdim=True)


@torch.no_grad()
def spectral_residual(pixels: Tensor, patch_size: int) -> Tensor:
    """Saliency ``(B, 4 h, 4 w)`` float64 in [0, 1]; 0 everywhere for a flat image.

    Raises:
        ValueError: for images of a single row or column of patches.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        if pixels.device.type == "mps":
            pixels = pixels.cpu()
        image = working_image(pixels, patch_size)
        if min(image.shape[-2:]) <= _TAPS // 2:
            raise ValueError(f"spectral residual: a grid of {image.shape[-2] // _CELLS} x {image.shape[-1] // _CELLS}.")
        spectrum = torch.fft.fft2(image)
        amplitude = spectrum.abs() + 1e-3
        log = amplitude.log()
        around = F.avg_pool2d(F.pad(log[:, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)[:, 0]
        residual = (log - around).exp() * spectrum / amplitude
        saliency = _blur(torch.fft.ifft2(residual).abs().square())
        peak = saliency.amax(dim=(1, 2), keepdim=True)
        return torch.where(peak > 1e-8, saliency / peak.clamp(min=1e-8), 0.0)


def _blur(x: Tensor) -> Tensor:
    at = torch.arange(_TAPS, dtype=x.dtype, device=x.device) - _TAPS // 2
    kernel = (-0.5 * (at / _SIGMA) ** 2).exp()
    kernel = kernel / kernel.sum()
    r = _TAPS // 2
    x = F.conv2d(F.pad(x[:, None], (0, 0, r, r), mode="reflect"), kernel.view(1, 1, -1, 1))
    return F.conv2d(F.pad(x, (r, r, 0, 0), mode="reflect"), kernel.view(1, 1, 1, -1))[:, 0]


def spectral_scores(pixels: Tensor, patch_size: int) -> Tensor:
    """Mean saliency of every patch, ``(B, L)`` float64."""
    cells = spectral_residual(pixels, patch_size)
    return F.avg_pool2d(cells[:, None], _CELLS).flatten(1).to(pixels.device)


def centre_scores(pixels: Tensor, patch_size: int) -> Tensor:
    """Minus the distance of a patch to the middle, ``(B, L)``: the control that this saliency loses to."""
    h, w = pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size
    rows = torch.arange(h, dtype=torch.float64, device=pixels.device) - (h - 1) / 2
    columns = torch.arange(w, dtype=torch.float64, device=pixels.device) - (w - 1) / 2
    distance = (rows[:, None] ** 2 + columns[None] ** 2).sqrt()
    return -distance.flatten().expand(len(pixels), -1)


def random_scores(pixels: Tensor, patch_size: int) -> Tensor:
    """Uniform numbers, ``(B, L)``, drawn by a generator that the image itself seeds.

    So an image keeps its patches in every batch, run and epoch, as under the choosers that this is the control of.
    """
    h, w = pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size
    levels = (255 * pixels).round().long().flatten(1)
    places = torch.arange(levels.shape[1], device=pixels.device) % 8191 + 1
    seeds = ((levels * places).sum(dim=1) % 2**31).tolist()
    drawn = [torch.rand(h * w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(pixels.device)


class AttentionScores:
    """Attention of the class token in the last block of a frozen encoder, its heads' mean.

    Args:
        encoder: in evaluation mode, of the same patches.
        mean: of the channels, that it was pretrained with.
        std: likewise.
    """

    def __init__(self, encoder: Any, mean: Any, std: Any) -> None:
        self.encoder = encoder.eval()
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, patch_size: int) -> Tensor:
        from adpe.viz.attention_maps import attention_maps

        if self.encoder.patch_size != patch_size:
            raise ValueError(
                f"saliency: the frozen encoder has patches of {self.encoder.patch_size}, not {patch_size}."
            )
        images = ((pixels - self.mean.to(pixels)) / self.std.to(pixels)).float()
        # It is no part of the model, whose checkpoints and devices do not concern it.
        self.encoder.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            return attention_maps(self.encoder, images)[-1].mean(dim=1).flatten(1).double().to(pixels.device)


CHOOSERS: dict[str, Chooser] = {
    "spectral_residual": spectral_scores,
    "centre": centre_scores,
    "random": random_scores,
}


def build_chooser(options: Mapping[str, Any]) -> tuple[Chooser, str]:
    """The chooser of ``saliency=dict(type=...)`` and its name.

    Raises:
        ValueError: for an unknown type.
    """
    kind = options.get("type", "spectral_residual")
    if kind == "attention":
        from adpe.checkpoints.loading import load_encoder
        from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD

        if not options.get("encoder"):
            raise ValueError("saliency: type='attention' needs encoder=FILE, a pretrained encoder of the same patches.")
        mean, std = options.get("mean", IMAGENET_MEAN), options.get("std", IMAGENET_STD)
        return AttentionScores(load_encoder(options["encoder"], verbose=False), mean, std), kind
    if kind not in CHOOSERS:
        raise ValueError(f"saliency: type={kind!r} is none of {', '.join([*CHOOSERS, 'attention'])}.")
    return CHOOSERS[kind], kind


def keep_best(scores: Tensor, ratio: float) -> Tensor:
    """Indices ``(B, k)`` of the ``max(1, int(ratio L))`` patches of highest score; equal ones by lower index."""
    count = max(1, int(ratio * scores.shape[1] + 1e-9))
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]
