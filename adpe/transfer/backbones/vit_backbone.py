"""The encoder as a backbone of mmsegmentation, mmdetection and mmpretrain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.evaluations.heads.linear_head import Blocks, probed_blocks
from adpe.models.vit import VisionTransformer
from adpe.transfer.backbones.initialisation import options_of_start, start_encoder

OutType = Literal["featmap", "featmap_cls", "avg_featmap", "cls_token", "raw"]


@MODELS.register_module()
class AdPEViT(VisionTransformer, BaseModule):
    """The encoder without mask tokens, giving features of chosen blocks. Inputs are padded to whole patches.

    Args:
        model: name of a size, e.g. ``adpe_vit_base_patch16``; None for that of the checkpoint.
        out_indices: blocks whose features are returned, negative from the end; or "last", "four_last", "four_even", see
            :func:`adpe.evaluations.heads.linear_head.probed_blocks`.
        final_norm: apply the encoder's final norm to the features of the last block; "every" to those of every block.
        out_type: mmpretrain's names: "featmap", maps ``(B, D, h, w)``; "avg_featmap", their means ``(B, D)``;
            "cls_token", ``(B, D)``; "raw", all tokens ``(B, N, D)``. And "featmap_cls", ``(B, 2 D, h, w)``: behind the
            channels of every patch those of the class token, of several their mean (Pixio's linear probe).
        frozen_stages: -1 trains everything, 0 freezes the embedding, n the embedding and the first n blocks; "all", or
            the depth, the final norm as well.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` loads through :func:`adpe.load_checkpoint`, which fails
            below full coverage; ``allow_missing=[...]`` names what may keep its start (shell patterns, such as
            ``"blocks.*.attn.rel_pos_[hw]"`` for a plain encoder under decomposed relative positions). None starts at
            random. The checkpoint's class token is left out if ``class_token=False``.
        options: of :class:`VisionTransformer`. What is left out, or None, is what the checkpoint says of itself.

    Raises:
        UserError: for options that do not go together or contradict the checkpoint, or a checkpoint that does not
            cover the encoder.
    """

    def __init__(
        self,
        model: str | None = "adpe_vit_base_patch16",
        out_indices: Sequence[int] | Blocks = (-1,),
        final_norm: bool | Literal["every"] = False,
        out_type: OutType = "featmap",
        frozen_stages: int | Literal["all"] = -1,
        init_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        try:
            super().__init__(**options_of_start(model, options, init_cfg, type(self).__name__))
        except ValueError as error:
            raise UserError(f"AdPEViT: {error}") from None
        # A backbone has no classes; mmdet's NumClassCheckHook compares the attribute of every module with the data's.
        del self.num_classes
        self.init_cfg = dict(init_cfg) if init_cfg else None
        depth = len(self.blocks)
        if isinstance(out_indices, str):
            try:
                out_indices = probed_blocks(depth, out_indices)
            except ValueError as error:
                raise UserError(f"AdPEViT: out_indices: {error}") from None
        frozen_stages = depth if frozen_stages == "all" else frozen_stages
        bad = [i for i in out_indices if not -depth <= i < depth]
        if bad:
            raise UserError(f"AdPEViT: out_indices {bad} do not exist in {model}, which has {depth} blocks.")
        if not -1 <= frozen_stages <= depth:
            raise UserError(f"AdPEViT: frozen_stages must lie in -1..{depth}, got {frozen_stages}.")
        if out_type not in get_args(OutType) or (out_type in ("cls_token", "featmap_cls") and self.cls_token is None):
            raise UserError(
                f"AdPEViT: out_type must be one of {', '.join(get_args(OutType))} (cls_token and featmap_cls with "
                f"class_token=True alone), got {out_type!r}."
            )
        self.out_type = out_type
        self.out_indices = [i % depth for i in out_indices]
        self.frozen_stages = frozen_stages
        self.norm_every = final_norm == "every"
        if not final_norm:
            self.norm = nn.Identity()
        self._freeze()

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, or keep the random initialisation, and log which."""
        start_encoder(self, self, ["cls_token"] if self.cls_token is None else [])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """``(B, 3, H, W)`` normalised images to features per block: contiguous maps
        ``(B, D, ceil(H / p), ceil(W / p))``, or what `out_type` says.
        """
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        maps: Any = self.forward_intermediates(
            images,
            indices=self.out_indices,
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        pairs = maps if self.num_prefix_tokens else [(patches, patches[:, :0]) for patches in maps]
        features = []
        for i, (patches, prefix) in zip(sorted({*self.out_indices}), pairs, strict=True):
            if self.norm_every or i == len(self.blocks) - 1:
                patches, prefix = self.norm(patches), self.norm(prefix)
            features.append(self._as_out_type(patches, prefix, images))
        return tuple(features)

    def _as_out_type(self, patches: Tensor, prefix: Tensor, images: Tensor) -> Tensor:
        if self.out_type == "featmap_cls":
            patches = torch.cat([patches, prefix.mean(dim=1, keepdim=True).expand_as(patches)], dim=2)
        if self.out_type in ("featmap", "featmap_cls"):
            return patches.transpose(1, 2).unflatten(2, self.patch_embed.grid(images)).contiguous()
        if self.out_type == "avg_featmap":
            return patches.mean(dim=1)
        if self.out_type == "cls_token":
            return prefix[:, 0]
        return torch.cat([prefix, patches], dim=1)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """:meth:`layer_depth` as mmpretrain's constructor of optimizers asks for it."""
        return self.layer_depth(param_name.removeprefix(prefix))

    def train(self, mode: bool = True) -> AdPEViT:
        """Frozen blocks stay in evaluation mode, so that stochastic depth leaves them alone."""
        super().train(mode)
        for block in self.blocks[: max(self.frozen_stages, 0)]:
            block.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.blocks[: self.frozen_stages]]
        if self.frozen_stages == len(self.blocks):
            frozen.append(self.norm)
        for parameter in [self.cls_token, self.pos_embed, *(p for module in frozen for p in module.parameters())]:
            if parameter is not None:
                parameter.requires_grad_(False)
