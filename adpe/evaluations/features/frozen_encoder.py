"""An encoder with pooled features, as classification and the evaluations on frozen features hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from adpe.errors import UserError
from adpe.evaluations.heads.linear_head import Blocks, probed_blocks
from adpe.models.backbones.saliency_vit import SaliencyViT
from adpe.models.vit import VisionTransformer
from adpe.transfer.backbones.initialisation import options_of_start, start_encoder

GlobalPool = Literal["avg", "token"]


def pool_tokens(tokens: Tensor, num_prefix_tokens: int, global_pool: GlobalPool = "avg") -> Tensor:
    """One vector ``(B, D)`` of tokens ``(B, N, D)``: the mean of the patches' ("avg") or the class token ("token").

    Raises:
        ValueError: for another word, or for the class token where there is none.
    """
    if global_pool not in get_args(GlobalPool) or (global_pool == "token" and not num_prefix_tokens):
        raise ValueError(f"global_pool must be avg, or token where there is a class token; got {global_pool!r}.")
    return tokens[:, 0] if global_pool == "token" else tokens[:, num_prefix_tokens:].mean(dim=1)


def block_tokens(
    backbone: Any, images: Tensor, blocks: int | Sequence[int] | None = None, final_norm: bool = True
) -> list[Tensor]:
    """Prefix and patch tokens ``(B, K + N, D)`` after chosen blocks.

    Args:
        backbone: the encoder.
        images: ``(B, C, H, W)``.
        blocks: as `indices` of ``forward_intermediates`` of :class:`adpe.models.vit.VisionTransformer`.
        final_norm: after the encoder's final norm, or before.
    """
    maps = backbone.forward_intermediates(
        images, blocks, return_prefix_tokens=True, norm=final_norm, output_fmt="NLC", intermediates_only=True
    )
    return [torch.cat([one[1], one[0]], dim=1) if isinstance(one, tuple) else one for one in maps]


def last_tokens(backbone: Any, images: Tensor, final_norm: bool) -> Tensor:
    """Prefix and patch tokens ``(B, K + N, D)`` after the last block, before or after the encoder's final norm."""
    return block_tokens(backbone, images, 1, final_norm)[0]


class PooledEncoder(BaseModel):
    """An encoder that starts from a checkpoint or at random, pooled to one vector an image.

    Args:
        model: name for :func:`adpe.create_encoder`; None for the size of the checkpoint.
        global_pool: "avg", the mean of the patch tokens, or "token", the class token.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` loads through :func:`adpe.load_checkpoint`, which fails
            below full coverage of the encoder; ``allow_missing=[...]`` names what may keep its start. None starts at
            random.
        data_preprocessor: config; mmengine's, which moves a batch to the device, if None.
        saliency: of :class:`adpe.models.backbones.saliency_vit.SaliencyViT`, whose blocks see the patches alone that a
            chooser keeps; ``type="attention"`` without ``encoder`` asks the checkpoint. None or {} for all patches.
        final_norm: pool after the encoder's final norm. MAE's class token tells more without it: 35.6 against 16.1 % by
            k-NN on ImageNet (billpsomas/efficient-probing, logs/mae_base/knn.txt).
        blocks: whose pooled tokens are joined, the earlier block first; see
            :func:`adpe.evaluations.heads.linear_head.probed_blocks`. "four_last" with the class token is what DINO's
            (arXiv 2104.14294) and DINO-MM's (arXiv 2204.05381) linear probes read of a small ViT.
        options: of :class:`adpe.VisionTransformer`. What is left out, or None, is what the checkpoint says of itself.

    Raises:
        UserError: for options that do not go together.
    """

    def __init__(
        self,
        model: str | None = None,
        global_pool: GlobalPool = "avg",
        init_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        saliency: dict | None = None,
        final_norm: bool = True,
        blocks: Blocks = "last",
        **options: Any,
    ) -> None:
        super().__init__(data_preprocessor)
        self.init_cfg = dict(init_cfg) if init_cfg else None
        try:
            given = options_of_start(model, options, init_cfg, type(self).__name__)
            if saliency:
                chosen = {"encoder": init_cfg["checkpoint"]} if saliency.get("type") == "attention" and init_cfg else {}
                self.backbone: VisionTransformer = SaliencyViT(**given, saliency={**chosen, **saliency})
            else:
                self.backbone = VisionTransformer(**given)
            pool_tokens(torch.zeros(1, 1, 1), self.backbone.num_prefix_tokens, global_pool)
            # Private: a protocol has it from the config, where it is not the default.
            self._blocks = probed_blocks(len(self.backbone.blocks), blocks)
        except (TypeError, ValueError) as error:
            raise UserError(f"{type(self).__name__}: {error}") from None
        self.global_pool: GlobalPool = global_pool
        self.final_norm = final_norm

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg` into the encoder, or keep the random initialisation, and log which."""
        start_encoder(self, self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to pooled features ``(B, D)``, after or before the encoder's final norm, if it has one.

        Of several blocks they are ``(B, blocks * D)``.
        """
        if self.final_norm and len(self._blocks) == 1:
            every = [self.backbone.forward_features(images)]
        else:
            every = block_tokens(self.backbone, images, self._blocks, self.final_norm)
        prefix = self.backbone.num_prefix_tokens
        return torch.cat([pool_tokens(tokens, prefix, self.global_pool) for tokens in every], dim=1)


@MODELS.register_module()
class AdPEFrozenEncoder(PooledEncoder):
    """The encoder of the evaluations on frozen features: nothing in it is trained. Arguments as `PooledEncoder`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.backbone.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        """Pooled features ``(B, D)`` float32 of ``(B, C, H, W)`` normalised images."""
        return self.features(inputs).float()
