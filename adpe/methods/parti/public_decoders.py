"""Two public decoders of image tokens, beside Parti's, for parity with their codes.

`ClassToCodes` has a token shift and squared ReLU and is conditioned on classes; `TextDecoder` has one key-value head
whose keys are its values, a null key, and two-dimensional relative biases, and is conditioned on text embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.methods.parti.sequences import guided


class ShiftedAttention(nn.Module):
    """Attention fed with a mixture of each token and the one before it, learned per channel."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.time_mix = nn.Parameter((torch.arange(dim) / max(dim - 1, 1)).view(1, 1, dim))
        self.key, self.query, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, forgets_from: int | None = None) -> Tensor:
        """``(B, N, D)``; from `forgets_from` on no token sees the one before it in the shift."""
        mixed = self._mixed(x, forgets_from)
        return self._attend(mixed, mixed, mask)

    def last(self, x: Tensor) -> Tensor:
        """Of the last of the tokens ``(B, n, D)`` alone, ``(B, 1, D)``: it sees all."""
        mixed = self._mixed(x)
        return self._attend(mixed[:, -1:], mixed)

    def _mixed(self, x: Tensor, forgets_from: int | None = None) -> Tensor:
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        if forgets_from is not None:
            before = torch.cat([before[:, :forgets_from], torch.zeros_like(before[:, forgets_from:])], dim=1)
        return self.time_mix * x + (1 - self.time_mix) * before

    def _attend(self, rows: Tensor, columns: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = (self.num_heads, rows.shape[-1] // self.num_heads)
        query, key, value = (
            layer(x).unflatten(-1, heads).transpose(1, 2)
            for layer, x in ((self.query, rows), (self.key, columns), (self.value, columns))
        )
        return self.proj(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2))


class ShiftedBlock(nn.Module):
    """Pre-norm block with a squared ReLU."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.attn = ShiftedAttention(dim, num_heads)
        self.mlp = nn.ModuleDict({"p0": nn.Linear(dim, 4 * dim), "p1": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor, mask: Tensor, forgets_from: int | None = None) -> Tensor:
        x = x + self.attn(self.ln1(x), mask, forgets_from)
        return x + self.mlp["p1"](F.relu(self.mlp["p0"](self.ln2(x))).square())


class ClassToCodes(nn.Module):
    """Codes after condition tokens, which see each other both ways.

    Args:
        dim: width.
        num_heads: heads.
        blocks: how many.
        conditions: different condition tokens.
        condition_tokens: of a sample.
        image_tokens: codes of an image.
        vocabulary: different ones.
    """

    def __init__(
        self, dim: int, num_heads: int, blocks: int, conditions: int, condition_tokens: int, image_tokens: int,
        vocabulary: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pos_emb_cond = nn.Parameter(torch.randn(1, condition_tokens, dim) * 0.02)
        self.pos_emb_code = nn.Parameter(torch.randn(1, image_tokens, dim) * 0.02)
        self.tok_emb_cond = nn.Embedding(conditions, dim)
        self.tok_emb_code = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(ShiftedBlock(dim, num_heads) for _ in range(blocks))
        self.layer_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, condition: Tensor, codes: Tensor, parity: bool = False) -> Tensor:
        """Logits ``(B, n, V)`` of codes ``(B, n)`` given those before them.

        Args:
            condition: ``(B, c)``.
            codes: ``(B, n)``.
            parity: as the public code samples: token by token, so that the shift of a code sees nothing before it.
        """
        prefix = condition.shape[1]
        tokens = [self.tok_emb_cond(condition) + self.pos_emb_cond, self.tok_emb_code(codes) + self.pos_emb_code]
        x = torch.cat(tokens, dim=1)
        count = x.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        mask[:prefix, :prefix] = True
        for block in self.blocks:
            x = block(x, mask, prefix if parity else None)
        return self.head(self.layer_norm(x))[:, prefix - 1 : -1]

    def stepper(self, condition: Tensor) -> Callable[[Tensor], Tensor]:
        """As :meth:`adpe.methods.parti.sequences.TextToCodes.stepper`.

        The normalised inputs that every block keeps hold the one before the newest, which its shift needs and the
        public code loses.
        """
        blocks: Any = self.blocks
        kept: list[Tensor | None] = [None] * len(blocks)

        def step(codes: Tensor) -> Tensor:
            place = codes.shape[1]
            if place:
                x = self.tok_emb_code(codes[:, -1:]) + self.pos_emb_code[:, place - 1 : place]
            else:
                x = self.tok_emb_cond(condition) + self.pos_emb_cond
            for number, block in enumerate(blocks):
                normed, before = block.ln1(x), kept[number]
                own = normed if before is None else torch.cat([before, normed], dim=1)
                kept[number] = own
                # The conditions see each other both ways; a code sees all before it.
                x = x + (block.attn(own, None) if before is None else block.attn.last(own))
                x = x + block.mlp["p1"](F.relu(block.mlp["p0"](block.ln2(x))).square())
            return self.head(self.layer_norm(x[:, -1]))

        return step


class GainNorm(nn.Module):
    """LayerNorm with a gain alone, eps 1e-5."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma)


class OneHeadAttention(nn.Module):
    """Many query heads over one head whose keys are its values, with a null key in front that is never hidden.

    Args:
        dim: width.
        context_dim: of the tokens that are attended to.
        num_heads: query heads.
        head_dim: width of a head.
        grid: side of the image in tokens, for the relative bias; None has none.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, head_dim: int, grid: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.norm = GainNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(head_dim))
        self.to_q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.pos_bias = nn.Embedding((2 * grid - 1) ** 2, num_heads) if grid else None

    def forward(self, x: Tensor, context: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """``(B, N, D)`` to the same; `allowed` ``(N or 1, M)`` or ``(B, 1, M)`` bool of the keys behind the null."""
        normed = self.norm(x)
        keys = self.to_kv(normed if context is None else context)
        keys = torch.cat([self.null_kv.expand(len(x), 1, -1), keys], dim=1)
        query = self.to_q(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        logits = torch.einsum("bhnd,bmd->bhnm", query * query.shape[-1] ** -0.5, keys)
        if self.pos_bias is not None:
            logits = logits + F.pad(self._bias(x.shape[1]), (1, 0))
        if allowed is not None:
            allowed = allowed if allowed.ndim == 3 else allowed[None]
            logits = logits.masked_fill(~F.pad(allowed, (1, 0), value=True)[:, None], float("-inf"))
        mixed = torch.einsum("bhnm,bmd->bhnd", logits.softmax(dim=-1), keys)
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _bias(self, count: int) -> Tensor:
        assert self.grid is not None and self.pos_bias is not None
        side = self.grid
        place = torch.arange(count, device=self.null_kv.device)
        rows, columns = place // side, place % side
        index = (rows[:, None] - rows + side - 1) * (2 * side - 1) + columns[:, None] - columns + side - 1
        return self.pos_bias(index).permute(2, 0, 1)


class TextDecoder(nn.Module):
    """Codes given text embeddings.

    Args:
        dim: width.
        depth: layers of self-attention, cross-attention and MLP.
        num_heads: query heads.
        head_dim: width of a head.
        text_dim: width of the text embeddings.
        grid: side of the image in tokens.
        vocabulary: codes.
    """

    def __init__(
        self, dim: int, depth: int, num_heads: int, head_dim: int, text_dim: int, grid: int, vocabulary: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.start_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.axial_height_pos = nn.Parameter(torch.randn(grid, dim) * 0.02)
        self.axial_width_pos = nn.Parameter(torch.randn(grid, dim) * 0.02)
        self.image_token_embed = nn.Embedding(vocabulary, dim)
        self.init_norm = GainNorm(dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = OneHeadAttention(dim, dim, num_heads, head_dim, grid)
            cross = OneHeadAttention(dim, text_dim, num_heads, head_dim)
            mlp = nn.Sequential(
                GainNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), GainNorm(4 * dim),
                nn.Linear(4 * dim, dim, bias=False),
            )  # fmt: skip
            self.layers.append(nn.ModuleList([attention, cross, mlp]))
        self.final_norm = GainNorm(dim)

    def forward(self, ids: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Logits ``(B, n + 1, V)`` behind the start token and ids ``(B, n)``.

        Args:
            ids: codes so far.
            text: ``(B, T, d)``.
            text_mask: ``(B, T)`` bool; False everywhere for no text.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        axial = self.axial_height_pos[places // self.grid] + self.axial_width_pos[places % self.grid]
        tokens = self.image_token_embed(ids) + axial
        x = self.init_norm(torch.cat([self.start_token.expand(len(ids), 1, -1), tokens], dim=1))
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=ids.device).tril()
        layers: Any = self.layers
        for attention, cross, mlp in layers:
            x = x + attention(x, None, causal)
            x = x + cross(x, text, text_mask.bool()[:, None])
            x = x + mlp(x)
        return self.final_norm(x) @ self.image_token_embed.weight.T

    def loss(self, ids: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Mean cross-entropy of all codes ``(B, n)``."""
        return F.cross_entropy(self(ids[:, :-1], text, text_mask).flatten(0, 1), ids.flatten())

    @torch.no_grad()
    def generate(
        self, text: Tensor, text_mask: Tensor, uniform: Tensor, guidance: float, filter_thres: float, temperature: float
    ) -> Tensor:
        """Codes ``(B, grid, grid)`` by the given uniform draws ``(n, B, V)``.

        Keeps the ``max(int((1 - filter_thres) V), 1)`` best, then the largest of logits over temperature plus Gumbel
        noise.
        """
        ids = torch.zeros(len(text), 0, dtype=torch.long, device=text.device)
        for noise in uniform:
            logits = self(ids, text, text_mask)[:, -1]
            logits = guided(self(ids, text, torch.zeros_like(text_mask))[:, -1], logits, guidance)
            count = max(int((1 - filter_thres) * logits.shape[-1]), 1)
            values, places = logits.topk(count, dim=-1)
            kept = torch.full_like(logits, float("-inf")).scatter(1, places, values)
            gumbel = -((-(noise + 1e-20).log()) + 1e-20).log()
            ids = torch.cat([ids, (kept / temperature + gumbel).argmax(dim=-1, keepdim=True)], dim=1)
        return ids.view(len(ids), self.grid, self.grid)
