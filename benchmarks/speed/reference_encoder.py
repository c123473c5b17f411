"""The peers that the encoder is compared with, in values by the tests and in speed by the benchmark.

:class:`PlainViTDet` writes ViTDet's windowed attention down plainly (arXiv 2203.16527, section 3 and appendix A.1; its
decomposed relative positions are MViTv2's, arXiv 2112.01526, section 4.1), eagerly and on channels-last maps as
published. :func:`mmseg_mae` is mmsegmentation's own backbone, :class:`TimmLastMap` timm's. All have the weights of one
of our encoders.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.models.vit import VisionTransformer

# Ours to mmsegmentation's; the patch embedding, tokens and tables keep theirs.
MMSEG_NAMES = [
    (r"^blocks\.", "layers."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.ls([12])\.gamma", r".gamma_\1"),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
]


class PlainViTDet(nn.Module):
    """ViTDet's backbone up to its last map, with the weights of an encoder without a class token.

    Args:
        encoder: absolute positions and `use_rel_pos`; its weights are copied.

    Raises:
        ValueError: for an encoder that ViTDet is not.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        if encoder.cls_token is not None or encoder.position != "absolute":
            raise ValueError("ViTDet has neither a class token nor contextual relative positions.")
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(p.detach().clone()) for name, p in encoder.named_parameters()}
        )
        self.heads, self.patch_size = encoder.num_heads, encoder.patch_size
        self.windows = [attention.window_size for attention in encoder.attentions()]
        image = encoder.patch_embed.proj.weight
        grid = encoder.grid_of(encoder.img_size)
        table = encoder.position_table(grid, image)[:, 1:].detach().unflatten(1, grid)
        self.positions: Tensor
        self.register_buffer("positions", table.clone())

    def weight(self, name: str) -> Tensor:
        """A weight by the encoder's name."""
        return self.weights[name.replace(".", "/")]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A linear layer."""
        return F.linear(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm over the channels."""
        return F.layer_norm(x, x.shape[-1:], self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), 1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` of the encoder's `img_size` to the map after the last block, ``(B, D, h, w)``."""
        weight, bias = (self.weight(f"patch_embed.proj.{kind}") for kind in ("weight", "bias"))
        x = F.conv2d(images, weight, bias, stride=self.patch_size).permute(0, 2, 3, 1) + self.positions
        for i, window in enumerate(self.windows):
            x = x + self.attention(self.norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn", window)
            y = F.gelu(self.linear(self.norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
            x = x + self.linear(y, f"blocks.{i}.mlp.fc2")
        return x.permute(0, 3, 1, 2)

    def attention(self, x: Tensor, name: str, window: int) -> Tensor:
        """Attention on a map ``(B, h, w, D)``, cut into zero-padded windows if `window` is not 0."""
        if not window:
            return self.global_attention(x, name)
        b, h, w, dim = x.shape
        x = F.pad(x, (0, 0, 0, -w % window, 0, -h % window))
        rows, columns = x.shape[1] // window, x.shape[2] // window
        x = x.reshape(b, rows, window, columns, window, dim).permute(0, 1, 3, 2, 4, 5)
        x = self.global_attention(x.reshape(-1, window, window, dim), name)
        x = x.reshape(b, rows, columns, window, window, dim).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(b, rows * window, columns * window, dim)[:, :h, :w]

    def global_attention(self, x: Tensor, name: str) -> Tensor:
        """``softmax(q k / sqrt(d) + q . r_h[row offset] + q . r_w[column offset]) v`` over a map ``(B, h, w, D)``."""
        b, h, w, dim = x.shape
        q, k, v = self.linear(x, f"{name}.qkv").reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        q = q.reshape(b, self.heads, h, w, -1)
        along_h = torch.einsum("bnhwc,hkc->bnhwk", q, self.offsets(f"{name}.rel_pos_h", h))
        along_w = torch.einsum("bnhwc,wkc->bnhwk", q, self.offsets(f"{name}.rel_pos_w", w))
        logits = logits.view(b, self.heads, h, w, h, w) + along_h[..., :, None] + along_w[..., None, :]
        out = logits.view(b, self.heads, h * w, h * w).softmax(dim=-1) @ v
        return self.linear(out.transpose(1, 2).reshape(b, h, w, dim), f"{name}.proj")

    def offsets(self, name: str, length: int) -> Tensor:
        """Relative positions ``(length, length, d)`` of query i and key j: row ``i - j + length - 1`` of the table."""
        table = self.weight(name)
        if len(table) != 2 * length - 1:
            table = F.interpolate(table.T[None], size=2 * length - 1, mode="linear")[0].T
        positions = torch.arange(length, device=table.device)
        return table[positions[:, None] - positions[None, :] + length - 1]


class TimmLastMap(nn.Module):
    """timm's ViT up to its last block, with the weights of an encoder with a class token and absolute positions."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer as TimmViT

        image = encoder.patch_embed.proj.weight
        self.model = TimmViT(
            img_size=encoder.img_size,
            patch_size=encoder.patch_size,
            embed_dim=encoder.embed_dim,
            depth=len(encoder.blocks),
            num_heads=encoder.num_heads,
            mlp_ratio=len(encoder.get_parameter("blocks.0.mlp.fc1.bias")) / encoder.embed_dim,
            num_classes=0,
            final_norm=False,
        ).to(image.device)
        state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("norm.")}
        state["pos_embed"] = encoder.position_table(encoder.grid_of(encoder.img_size), image).detach()
        self.model.load_state_dict(state)

    def weight(self, name: str) -> Tensor:
        """A weight by the encoder's name, which is timm's."""
        return self.model.get_parameter(name)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` of the encoder's `img_size` to the map after the last block, ``(B, D, h, w)``."""
        last = len(self.model.blocks) - 1
        maps: Any = self.model.forward_intermediates(images, indices=[last], intermediates_only=True)
        return maps[0]


def mmseg_mae(encoder: VisionTransformer) -> nn.Module:
    """mmsegmentation's MAE backbone with an encoder's weights; without a relative bias or LayerScale, neutral ones."""
    from mmseg.models.backbones import MAE

    blocks = len(encoder.blocks)
    peer = MAE(
        img_size=encoder.img_size,
        patch_size=encoder.patch_size,
        embed_dims=encoder.embed_dim,
        num_layers=blocks,
        num_heads=encoder.num_heads,
        mlp_ratio=len(encoder.get_parameter("blocks.0.mlp.fc1.bias")) // encoder.embed_dim,
        out_indices=list(range(blocks)),
        norm_cfg={"type": "LN", "eps": 1e-6},
        init_values=1.0,
    )
    grid = encoder.grid_of(encoder.img_size)
    state = {"pos_embed": encoder.position_table(grid, encoder.patch_embed.proj.weight).detach()}
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("norm."):
            state[to_mmseg_name(name)] = tensor
    missing, unexpected = peer.load_state_dict(state, strict=False)
    neutral = r"gamma_[12]|relative_position_(bias_table|index)"  # all ones, all zeros, and no weight
    if unexpected or [name for name in missing if not re.search(neutral, name)]:
        raise ValueError(f"mmsegmentation's MAE cannot take this encoder: {missing} missing, {unexpected} unexpected.")
    return peer.to(encoder.patch_embed.proj.weight.device)


def to_mmseg_name(name: str) -> str:
    """mmsegmentation's name of one of our encoder's parameters."""
    for pattern, replacement in MMSEG_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
