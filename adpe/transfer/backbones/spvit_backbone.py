"""SP-ViT as a backbone of mmsegmentation and mmdetection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from adpe.checkpoints.loading import LoadReport
from adpe.errors import UserError
from adpe.models.backbones.spvit import SPViT
from adpe.transfer.backbones.initialisation import starting_checkpoint
from adpe.transfer.backbones.network_loading import start_network

_LEFT_OUT = re.compile(r"(head|aux_head|norm)\.")


@MODELS.register_module()
class AdPESPViT(BaseModule):
    """Maps of one stride after chosen blocks, for images of any size, which are padded to whole patches.

    The map of a block behind the class token's arrival leaves it out. Positions are resampled in every forward pass.
    Attention is of the whole image and its matrix is kept: memory grows with the square of the patches, 4096 of them in
    an image of 1024 px; ``grad_checkpointing=True`` keeps one block's at a time.

    Attributes:
        channels: of the maps, in the order of `out_indices`.
        strides: pixels of the image for a pixel of the maps.

    Args:
        variant: of :data:`adpe.models.backbones.spvit.VARIANTS`; None with ``embed_dim``, ``depth`` and ``num_heads``.
        img_size: pixels of a side in pretraining, of the table of positions and of ``offset_scale="train_grid"``.
        out_indices: blocks whose maps are given, negative from the end. What follows the last of them is not run and
            not trained.
        final_norm: apply the network's final norm to the map of the last block.
        frozen_stages: -1 trains everything, 0 freezes stem, positions and class token, n the first n blocks as well.
        norm_eval: the stem's BatchNorm keeps to its running statistics in training, for few images at a time.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)``: a local file of the authors' names or of a run of this
            backbone, which must cover it. None is random initialisation.
        options: of :class:`SPViT`, but its heads'.

    Raises:
        UserError: for sizes that do not go together, windows, or a checkpoint that does not cover the backbone.
    """

    def __init__(
        self,
        variant: str | None = "small",
        img_size: int = 224,
        out_indices: Sequence[int] = (-1,),
        final_norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.init_cfg = dict(init_cfg) if init_cfg else None
        if options.get("window_size"):
            raise UserError(f"AdPESPViT: window_size={options['window_size']}: attention is of the whole image.")
        options.pop("window_size", None)
        try:
            self.net = SPViT(variant, img_size, num_classes=0, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"AdPESPViT: {error}") from None
        # mmdet's NumClassCheckHook compares the attribute of every module with the data's classes.
        del self.net.num_classes
        depth = len(self.net.blocks)
        if not out_indices or any(not -depth <= i < depth for i in out_indices):
            raise UserError(
                f"AdPESPViT: out_indices={tuple(out_indices)}: expected some of the blocks 0 to {depth - 1}."
            )
        if not -1 <= frozen_stages <= depth:
            raise UserError(f"AdPESPViT: frozen_stages must lie in -1..{depth}, got {frozen_stages}.")
        self.out_indices = tuple(i % depth for i in out_indices)
        self.count = max(self.out_indices) + 1
        self.final_norm = final_norm and self.count == depth
        if not self.final_norm:
            self.net.norm = nn.Identity()
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.channels = (self.net.embed_dim,) * len(self.out_indices)
        self.strides = (self.net.patch_size,) * len(self.out_indices)
        for module in [*self._frozen(), *self.net.blocks[self.count :]]:
            module.requires_grad_(False)
        if frozen_stages >= 0:
            self.net.pos_embed.requires_grad_(False)
        if frozen_stages >= 0 or self.count <= self.net.prior_blocks:
            self.net.cls_token.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.net.patch_embed, *self.net.blocks[: self.frozen_stages]]

    def train(self, mode: bool = True) -> AdPESPViT:
        """What is frozen stays in evaluation mode, with `norm_eval` every BatchNorm."""
        super().train(mode)
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)] if self.norm_eval else []
        for module in [*self._frozen(), *norms]:
            module.eval()
        return self

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, or keep the random initialisation, and log which."""
        path = starting_checkpoint(self, "the network starts at random")
        if path is not None:
            hint = "Choose the variant and prior_blocks that it is of."
            start_network(self.net, path, check_positions, _LEFT_OUT, hint=hint)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` normalised images to contiguous maps ``(B, D, ceil(H / p), ceil(W / p))``."""
        patch = self.net.patch_size
        images = F.pad(images, (0, -images.shape[-1] % patch, 0, -images.shape[-2] % patch))
        x, grid = self.net.embed(images)
        found = self.net.block_tokens(x, grid, self.count)
        maps = []
        for i in self.out_indices:
            patches = found[i][:, -grid[0] * grid[1] :]
            if i == len(self.net.blocks) - 1:
                patches = self.net.norm(patches)
            maps.append(patches.transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps)

    def layer_depth(self, name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the number of depths; see :meth:`SPViT.layer_depth`."""
        return self.net.layer_depth(name.removeprefix("net."))

    def no_weight_decay(self) -> set[str]:
        """See :meth:`SPViT.no_weight_decay`."""
        return {f"net.{name}" for name in self.net.no_weight_decay()}

    def describe_positions(self) -> str:
        """How positions and attention work, in words, as the encoder's method of this name."""
        scale = self.net.offset_scale.replace("raw", "raw offsets").replace(
            "train_grid", "offsets of the training grid"
        )
        return f"learned timm, spatial prior in {self.net.prior_blocks} blocks, {scale}"


def check_positions(net: nn.Module, state: dict[str, Tensor], report: LoadReport) -> None:
    """Raise UserError if a file's table of positions is of another ``img_size`` than that of an :class:`SPViT`."""
    table, patch, side = state.get("pos_embed"), cast(SPViT, net).patch_size, cast(SPViT, net).train_side
    if table is not None and table.ndim == 3 and table.shape[1] != side**2:
        theirs = round(table.shape[1] ** 0.5)
        raise UserError(
            f"{report.path}: its table of positions has {table.shape[1]} patches, that of img_size={side * patch} has "
            f"{side**2}. Set img_size={theirs * patch}."
        )
