"""The transformers of ViT-VQGAN's tokenizer: attention without biases, a width of heads of its own, eps 1e-5."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from adpe.models.pos_embed import sincos_table

Activation = Literal["gelu", "tanh"]


class VQAttention(nn.Module):
    """Attention without biases of queries, keys and values; the width of a head is an option of its own."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VQBlock(nn.Module):
    """Pre-norm block, LayerNorm eps 1e-5."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = VQAttention(dim, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        hidden = self.fc1(self.norm2(x))
        return x + self.fc2(hidden.tanh() if self.activation == "tanh" else F.gelu(hidden))


class VQTransformer(nn.Module):
    """Positions, blocks, norm; with ``two_layer_head`` two linear layers with tanh between behind it, as published."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, head_dim: int, hidden: int, activation: Activation,
        two_layer_head: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleList(VQBlock(dim, num_heads, head_dim, hidden, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim)) if two_layer_head else None

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens ``(B, h * w, D)`` of a grid to the same."""
        x = x + sincos_table(*grid, x.shape[-1], x.dtype, x.device, 0)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x if self.head is None else self.head(x)


def init_xavier(module: nn.Module) -> None:
    """Linear weights Xavier uniform, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
