"""DINOv3's linear segmentation probe: what is linearly readable in the maps of a frozen encoder (arXiv 2508.10104).

Dropout of whole channels, batch norm, one 1x1 layer; logits are stretched to the pixels. The equations are those of
its evaluation code, named at each function; :mod:`adpe.transfer.linear_segmentation_head`
and :mod:`adpe.transfer.linear_detection_head` register them with mmseg and mmdet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = 255
Blocks = Literal["last", "four_last", "four_even"]


def probed_blocks(depth: int, blocks: Blocks) -> list[int]:
    """Blocks, counted from 0, whose normed maps are read.

    Args:
        depth: blocks L of the encoder.
        blocks: "last" (published), the last four, or four spread evenly: ``i * (L // 4) - 1``, with 4, 11, 17, 23 of
            24.

    Raises:
        ValueError: for another word, or fewer than four blocks where four are asked for.
    """
    if blocks not in get_args(Blocks):
        raise ValueError(f"blocks={blocks!r}: expected one of {', '.join(get_args(Blocks))}.")
    if blocks == "last":
        return [depth - 1]
    if depth < 4:
        raise ValueError(f"blocks={blocks!r} needs four blocks, the encoder has {depth}.")
    if blocks == "four_last":
        return list(range(depth - 4, depth))
    return [4, 11, 17, 23] if depth == 24 else [i * (depth // 4) - 1 for i in range(1, 5)]


class LinearHead(nn.Module):
    """Maps of a frozen encoder to logits.

    Args:
        channels: of all maps together; doubled by `class_token`.
        num_classes: of the logits.
        dropout: probability of dropping a channel of an image, *before* the norm.
        batch_norm: normalise (affine, eps 1e-5, momentum 0.1).
        class_token: repeat each map's class token behind its channels.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        dropout: float = 0.1,
        batch_norm: bool = True,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        channels *= 1 + class_token
        self.class_token = class_token
        self.dropout = nn.Dropout2d(dropout)
        self.norm: nn.Module = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(
        self, maps: Sequence[Tensor], class_tokens: Sequence[Tensor] = (), keep: Tensor | None = None
    ) -> Tensor:
        """Logits ``(B, classes, h, w)``.

        Args:
            maps: ``(B, D, h, w)`` each; others than the first are brought to its size bilinearly.
            class_tokens: ``(B, D)`` of each map, with `class_token`.
            keep: ``(B, channels)`` bool, the channels that dropout keeps in training; drawn if None.
        """
        if self.class_token:
            maps = [
                torch.cat([x, token[..., None, None].expand_as(x)], 1)
                for x, token in zip(maps, class_tokens, strict=True)
            ]
        return self.classify(join_maps(maps), keep)

    def classify(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Joined maps ``(B, channels, h, w)`` to logits."""
        if keep is None or not self.training:
            x = self.dropout(x)
        else:
            x = x * (keep.to(x.dtype) / (1 - self.dropout.p))[..., None, None]
        return self.conv(self.norm(x))


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Maps on channels, in their order, at the size of the first."""
    first = maps[0].shape[-2:]
    return torch.cat([x if x.shape[-2:] == first else stretch(x, first) for x in maps], 1)


def stretch(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, C, h, w)`` to another size: bilinear, half-pixel centres, no antialias."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy at the labels' size, averaged over *all* pixels: ignored ones count as 0, and in the mean.

    Args:
        logits: ``(B, C, h, w)``.
        labels: ``(B, H, W)``, 255 ignored.
    """
    labels = labels.long()
    return F.cross_entropy(stretch(logits, labels.shape[-2:]), labels, ignore_index=IGNORED, reduction="none").mean()


def windows(image: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of every window of sliding inference; the last of a row moves inwards.

    An image smaller than the crop in *both* directions gets square windows of its shorter side; in one only, windows as
    short as the image.
    """
    height, width = image
    if height < crop[0] and width < crop[1]:
        crop = (min(image), min(image))
    rows, columns = (max(size - c + s - 1, 0) // s + 1 for size, c, s in zip(image, crop, stride, strict=True))
    found = []
    for row in range(rows):
        bottom = min(row * stride[0] + crop[0], height)
        for column in range(columns):
            right = min(column * stride[1] + crop[1], width)
            found.append((max(bottom - crop[0], 0), bottom, max(right - crop[1], 0), right))
    return found


def slide_logits(
    images: Tensor, predict: Callable[[Tensor], Tensor], crop: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Mean logits ``(B, C, H, W)`` of the windows of images ``(B, 3, H, W)``.

    Args:
        images: normalised.
        predict: a window to logits at any resolution, which are brought to the window's size.
        crop: height and width of a window.
        stride: between windows.
    """
    total: Tensor | None = None
    count = images.new_zeros(1, 1, *images.shape[-2:])
    height, width = images.shape[-2:]
    for top, bottom, left, right in windows((height, width), crop, stride):
        logits = stretch(predict(images[..., top:bottom, left:right]), (bottom - top, right - left))
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], height, width)
        total[..., top:bottom, left:right] += logits
        count[..., top:bottom, left:right] += 1
    assert total is not None
    return total / count
