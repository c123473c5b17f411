"""What a committee of masked views says of target images: the views, their verdicts, and whether they are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from adpe.evaluations.domain_adaptation.pacmac import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_committee(
    images: Tensor, attention: Tensor, found: Selection, labels: Sequence[int], classes: Sequence[str], patch_size: int
) -> Figure:
    """A row an image: the image with pseudo-label and verdict, its attention, and every view with its prediction.

    Args:
        images: ``(B, 3, H, W)`` in 0..1.
        attention: ``(B, L)`` to the patches.
        found: of these images.
        labels: their true ones, which the committee does not see.
        classes: names.
        patch_size: pixels.
    """
    from adpe.viz.figures import panels, show_image

    height, width = images.shape[-2:]
    grid = (height // patch_size, width // patch_size)
    title = "Target images, the last block's attention, and the committee's views"
    figure, axes = panels(len(images), 2 + len(found.views), 2.3, 2.3 * height / width + 0.35, title)
    pseudo, selected = found.pseudo_labels.tolist(), found.selected.tolist()
    heat = _enlarged((attention / attention.amax(dim=1, keepdim=True)).view(-1, *grid), patch_size)
    for row, (image, line) in enumerate(zip(images, axes, strict=True)):
        right = pseudo[row] == labels[row]
        why = "consistent" if bool(found.consistent[row]) else "confident" if bool(found.confident[row]) else ""
        verdict = f"selected ({why})" if selected[row] else "not selected"
        show_image(line[0], image.permute(1, 2, 0).numpy())
        line[0].set_title(
            f"{classes[pseudo[row]]}, {float(found.confidence[row]):.2f}; is {classes[labels[row]]}\n{verdict}, "
            f"{'right' if right else 'wrong'}", fontsize=8, color="green" if right else "firebrick",
        )  # fmt: skip
        line[1].imshow(heat[row].numpy(), cmap="viridis", vmin=0)
        line[1].set_axis_off()
        for axis, view, logits in zip(line[2:], found.views, found.logits, strict=True):
            kept = 1 - _enlarged(view.mask[row].cpu().view(1, *grid), patch_size)
            show_image(axis, torch.where(kept.bool(), image, torch.full_like(image, 0.85)).permute(1, 2, 0).numpy())
            named = int(logits[row].argmax())
            axis.set_title(f"{classes[named]}{', agrees' if named == pseudo[row] else ''}", fontsize=8)
    return figure


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    """``(n, h, w)`` of patches to pixels."""
    return F.interpolate(maps[:, None].float(), scale_factor=factor, mode="nearest")[:, 0]
