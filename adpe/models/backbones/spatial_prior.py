"""SP-ViT's spatial prior (arXiv 2206.07662): a learned function of the offset between patches multiplies their logit.

Every head has a small network of the offset in patches, ``(column, row)`` of the key minus the query. At the start it
is 1 and attention is plain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def offsets(h: int, w: int, device: torch.device | str | None = None) -> Tensor:
    """``(L, L, 2)`` offsets (column, row) of key minus query, in patches."""
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
    return places[None] - places[:, None]


class SpatialPrior(nn.Module):
    """The small networks of all heads, by the reference's names.

    Args:
        dim: width D; each head has a block of ``D / H`` hidden channels.
        num_heads: heads H.
        train_grid: side of the grid of training, for offsets that are scaled to it; None takes them raw.
    """

    def __init__(self, dim: int, num_heads: int, train_grid: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.train_grid = num_heads, train_grid
        self.w1 = nn.Linear(2, dim)
        self.w2 = nn.Parameter(torch.zeros(dim, 1))
        self.b2 = nn.Parameter(torch.ones(num_heads))
        self.reset_prior()

    def reset_prior(self) -> None:
        """The reference's start: ``w1`` truncated normal of 0.02, the rest so that the multiplier is 1."""
        nn.init.trunc_normal_(self.w1.weight, std=0.02)
        nn.init.zeros_(self.w1.bias)
        nn.init.zeros_(self.w2)
        nn.init.ones_(self.b2)

    def multiplier(self, grid: tuple[int, int]) -> Tensor:
        """``(H, L, L)``: the small networks on the ``(2 h - 1)(2 w - 1)`` different offsets, spread over the pairs."""
        h, w = grid
        device, dtype = self.w2.device, self.w2.dtype
        columns = torch.arange(1 - w, w, device=device)
        rows = torch.arange(1 - h, h, device=device)
        different = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(dtype)
        if self.train_grid is not None:
            different = different * different.new_tensor([self.train_grid / w, self.train_grid / h])
        hidden = F.relu(self.w1(different)).unflatten(-1, (self.num_heads, -1))
        values = torch.einsum("rchd,hd->hrc", hidden, self.w2.view(self.num_heads, -1)) + self.b2[:, None, None]
        # Entry (a, b) of the windows is offset (a - h + 1 + row, b - w + 1 + column): queries come in reverse.
        pairs = values.unfold(1, h, 1).unfold(2, w, 1).flip(1, 2)
        return pairs.reshape(self.num_heads, h * w, h * w)
