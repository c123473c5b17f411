"""Saliency-guided attention as an option of the encoder, ours after SGT (arXiv 2206.08567).

Only the most salient patches attend to each other, until a residual puts them back among the embeddings of all patches
before the last block. No code of SGT was published; the encoder's form is that of the same author's EG-ViT (arXiv
2205.12466), everything about saliency is ours. A row of a table is called "saliency-guided (ours, after SGT)".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from adpe.models.backbones.saliency import build_chooser, keep_best
from adpe.models.layers import run_blocks
from adpe.models.vit import VisionTransformer


class SaliencyViT(VisionTransformer):
    """The encoder with saliency-guided attention; its parameters are those of :class:`VisionTransformer`.

    Args:
        saliency: ``type`` (spectral_residual, centre, random, attention with ``encoder``), ``ratio`` of the patches
            that are kept (0.25), ``residual_before`` the block (-1: the last), ``mask_probability`` of a training batch
            (1.0), ``mask_at_test`` (True), ``class_position`` in the masked pass (True), and ``mean`` and ``std`` with
            which images are normalised.
        options: of :class:`VisionTransformer`.

    Raises:
        ValueError: for options that do not go together, relative positions and windows among them.
    """

    def __init__(self, *args: Any, saliency: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        said: dict[str, Any] = {"ratio": 0.25, "residual_before": -1, "mask_probability": 1.0, "mask_at_test": True,
                "class_position": True, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}  # fmt: skip
        unknown = {*(saliency or {})} - {*said, "type", "encoder"}
        if unknown:
            raise ValueError(f"saliency has no option {', '.join(sorted(unknown))}.")
        said |= saliency or {}
        if self.relative or self.needs_grid or not self.num_prefix_tokens:
            raise ValueError("saliency needs a class token, absolute positions and no windows.")
        depth = len(self.blocks)
        before = said["residual_before"]
        if not -depth <= before < depth or not 0 < said["ratio"] <= 1 or not 0 <= said["mask_probability"] <= 1:
            raise ValueError(f"saliency: residual_before={before} of {depth} blocks, ratio={said['ratio']} in (0, 1].")
        self.chooser, self.chooser_name = build_chooser(said)
        self.keep_ratio, self.residual_before = float(said["ratio"]), before % depth
        self.mask_probability, self.mask_at_test = float(said["mask_probability"]), bool(said["mask_at_test"])
        self.class_position = bool(said["class_position"])
        self.pixel_mean, self.pixel_std = tuple(said["mean"]), tuple(said["std"])

    def choose(self, images: Tensor) -> Tensor:
        """Indices ``(B, k)`` of the patches that are kept of normalised images."""
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.pixel_mean, self.pixel_std))
        return keep_best(self.chooser(images * std + mean, self.patch_size), self.keep_ratio)

    def masked(self) -> bool:
        """Whether this pass is masked: drawn for a batch in training, as the option says at test."""
        if not self.training:
            return self.mask_at_test
        return self.mask_probability >= 1 or float(torch.rand(())) < self.mask_probability

    def block_tokens(self, images: Tensor, kept: Tensor, count: int | None = None) -> list[Tensor]:
        """Tokens ``(B, K + L, D)`` after every block; before the residual, kept features stand on the embeddings.

        Args:
            images: ``(B, 3, H, W)`` normalised.
            kept: ``(B, k)`` patches that attend to each other.
            count: so many blocks are run; None runs all.
        """
        prefix = self.num_prefix_tokens
        x, _ = self.embed(images)
        patches = x[:, prefix:]
        assert self.cls_token is not None
        cls = x[:, :prefix] if self.class_position else self.cls_token.expand(len(images), -1, -1)
        places = kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        x = torch.cat([cls, patches.gather(1, places)], dim=1)
        found = []
        for number, block in enumerate(islice(self.blocks, count)):
            if number == self.residual_before:
                x = torch.cat([x[:, :prefix], patches.scatter_add(1, places, x[:, prefix:])], dim=1)
            x = run_blocks([block], x, [None], self.grad_checkpointing)
            if number < self.residual_before:
                whole = patches.scatter_add(1, places, x[:, prefix:])
                found.append(torch.cat([x[:, :prefix], whole], dim=1))
            else:
                found.append(x)
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        if not self.masked():
            return super().forward_features(images)
        return self.norm(self.block_tokens(images, self.choose(images))[-1])

    def forward_intermediates(  # type: ignore[no-untyped-def]
        self, images: Tensor, indices: int | Sequence[int] | None = None, return_prefix_tokens: bool = False,
        norm: bool = False, stop_early: bool = False, output_fmt: Any = "NCHW", intermediates_only: bool = False,
    ):  # fmt: skip
        if not self.masked():
            return super().forward_intermediates(
                images,
                indices,
                return_prefix_tokens,
                norm,
                stop_early,
                output_fmt,
                intermediates_only,
            )
        depth, prefix = len(self.blocks), self.num_prefix_tokens
        wanted = range(depth) if indices is None else range(depth)[-indices:] if isinstance(indices, int) else indices
        bad = [i for i in wanted if not -depth <= i < depth]
        if bad or output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"indices {bad} of {depth} blocks, output_fmt={output_fmt!r}.")
        keep = sorted({i % depth for i in wanted})
        count = max(keep, default=-1) + 1 if stop_early else None
        tokens = self.block_tokens(images, self.choose(images), count)
        chosen = [self.norm(tokens[i]) if norm else tokens[i] for i in keep]
        maps: list[Any] = [x[:, prefix:] for x in chosen]
        if output_fmt == "NCHW":
            grid = self.patch_embed.grid(images)
            maps = [x.transpose(1, 2).reshape(len(x), -1, *grid).contiguous() for x in maps]
        if return_prefix_tokens:
            maps = [(x, y[:, :prefix]) for x, y in zip(maps, chosen, strict=True)]
        return maps if intermediates_only else (self.norm(tokens[-1]), maps)

    def describe_positions(self) -> str:
        """As the encoder's, and how patches are chosen: it is another entry of a table."""
        test = "masked at test" if self.mask_at_test else "whole at test"
        own = f"saliency {self.chooser_name} {self.keep_ratio:g}, residual before block {self.residual_before}, {test}"
        return f"{super().describe_positions()}, {own}"
