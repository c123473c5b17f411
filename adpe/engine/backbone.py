"""The encoder as a backbone of mmsegmentation, mmdetection and mmpretrain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.checkpoint import load_checkpoint
from adpe.errors import UserError
from adpe.models import encoder_options
from adpe.vit import VisionTransformer


@MODELS.register_module()
class AdPEViT(VisionTransformer, BaseModule):
    """The encoder without mask tokens, giving maps of chosen blocks. Inputs are padded to whole patches.

    Args:
        model: name of a size, e.g. ``adpe_vit_base_patch16``.
        out_indices: blocks whose features are returned, negative from the end.
        final_norm: apply the encoder's final norm to the features of the last block.
        frozen_stages: -1 trains everything, 0 freezes the embedding, n the embedding and the first n blocks.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` loads through :func:`adpe.load_checkpoint`, which fails
            below full coverage; ``allow_missing=[...]`` names what may keep its start. None starts at random.
        options: of :class:`VisionTransformer`.

    Raises:
        UserError: for a checkpoint that does not cover the encoder.
    """

    def __init__(
        self,
        model: str = "adpe_vit_base_patch16",
        out_indices: Sequence[int] = (-1,),
        final_norm: bool = False,
        frozen_stages: int = -1,
        init_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**{**encoder_options(model), **options})
        self.init_cfg = dict(init_cfg) if init_cfg else None
        depth = len(self.blocks)
        bad = [i for i in out_indices if not -depth <= i < depth]
        if bad:
            raise UserError(f"AdPEViT: out_indices {bad} do not exist in {model}, which has {depth} blocks.")
        if not -1 <= frozen_stages <= depth:
            raise UserError(f"AdPEViT: frozen_stages must lie in -1..{depth}, got {frozen_stages}.")
        self.out_indices = [i % depth for i in out_indices]
        self.frozen_stages = frozen_stages
        if not final_norm:
            self.norm = nn.Identity()
        self._freeze()

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, or keep the random start (and say so)."""
        if self.init_cfg is None:
            print_log("AdPEViT: no init_cfg, the encoder starts at random", logger="current")
            return
        if self.init_cfg.get("type") != "Pretrained" or not self.init_cfg.get("checkpoint"):
            raise UserError(f"AdPEViT: init_cfg must be dict(type='Pretrained', checkpoint=PATH), got {self.init_cfg}.")
        options = {key: self.init_cfg.get(key, ()) for key in ("allow_missing", "allow_unexpected")}
        report = load_checkpoint(self, self.init_cfg["checkpoint"], verbose=False, **options)
        print_log(str(report), logger="current")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """``(B, 3, H, W)`` normalised images to a map ``(B, D, ceil(H / p), ceil(W / p))`` a block."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        maps = self.forward_intermediates(images, indices=self.out_indices, stop_early=True, intermediates_only=True)
        if len(self.blocks) - 1 == max(self.out_indices) and not isinstance(self.norm, nn.Identity):
            maps[-1] = self.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return tuple(maps)

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
        for parameter in [self.cls_token, *(p for module in frozen for p in module.parameters())]:
            parameter.requires_grad_(False)
        if self.pos_embed is not None:
            self.pos_embed.requires_grad_(False)
