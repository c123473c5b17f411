"""Sequence models over image tokens: text to image with an encoder and a decoder (Parti, arXiv 2206.10789), and sampling.

Models of twenty billion parameters are out of reach; these are the honest minimum, for tokens of the suite's own
tokenizers. Two public decoders are in :mod:`adpe.methods.parti.public_decoders`, for parity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_REMOVED = -1e30


class TextToCodes(nn.Module):
    """Parti's kind: a pre-norm encoder of text, a causal decoder of codes that attends to it.

    Args:
        dim: width.
        num_heads: heads.
        encoder_blocks: of the text.
        decoder_blocks: of the codes.
        mlp_dim: hidden width of the MLPs.
        text_tokens: most tokens of a text.
        text_vocabulary: different ones; 0 is the null text.
        image_tokens: codes of an image.
        vocabulary: different ones.
    """

    def __init__(
        self, dim: int, num_heads: int, encoder_blocks: int, decoder_blocks: int, mlp_dim: int, text_tokens: int,
        text_vocabulary: int, image_tokens: int, vocabulary: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.transformer = nn.Transformer(
            dim, num_heads, encoder_blocks, decoder_blocks, mlp_dim, 0.0, F.gelu, layer_norm_eps=1e-6,
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.text_embed = nn.Embedding(text_vocabulary, dim)
        self.image_embed = nn.Embedding(vocabulary, dim)
        self.text_pos = nn.Parameter(torch.randn(text_tokens, dim) * 0.02)
        self.image_pos = nn.Parameter(torch.randn(image_tokens, dim) * 0.02)
        self.start = nn.Parameter(torch.randn(dim) * 0.02)
        for parameter in (self.text_embed.weight, self.image_embed.weight):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, text: Tensor, lengths: Tensor, codes: Tensor) -> Tensor:
        """Logits ``(B, n, V)`` of codes ``(B, n)`` given those before them and texts ``(B, T)`` of `lengths` ``(B,)``."""
        places = torch.arange(text.shape[1], device=text.device)
        padding = places >= lengths[:, None]
        source = self.text_embed(text) + self.text_pos[: text.shape[1]]
        count = codes.shape[1]
        before = torch.cat([self.start.expand(len(codes), 1, -1), self.image_embed(codes[:, :-1])], dim=1)
        causal = torch.full((count, count), float("-inf"), device=codes.device).triu(1)
        memory = self.transformer.encoder(source, src_key_padding_mask=padding)
        hidden = self.transformer.decoder(
            before + self.image_pos[:count],
            memory,
            tgt_mask=causal,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return hidden @ self.image_embed.weight.T

    def of_null(self, text: Tensor, codes: Tensor) -> Tensor:
        """Logits for the null text: one token 0."""
        return self(torch.zeros_like(text), torch.ones(len(text), dtype=torch.long, device=text.device), codes)

    def loss(
        self, text: Tensor, lengths: Tensor, codes: Tensor, drop: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy over all codes; a sample's text is dropped where `noise` ``(B,)`` is below `drop`."""
        if drop:
            noise = torch.rand(len(text), device=text.device) if noise is None else noise
            dropped = noise < drop
            text = torch.where(dropped[:, None], 0, text)
            lengths = torch.where(dropped, 1, lengths)
        return F.cross_entropy(self(text, lengths, codes).flatten(0, 1), codes.flatten())


def guided(null: Tensor, text: Tensor, scale: float) -> Tensor:
    """Guidance without a classifier: ``null + scale * (text - null)``; a scale of 1 is the plain model."""
    return null + scale * (text - null)


def keep_top_k(logits: Tensor, k: int | None) -> Tensor:
    """Logits of all but the k best removed."""
    if k is None or k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, _REMOVED)


def keep_top_p(probabilities: Tensor, p: float | None) -> Tensor:
    """Probabilities of the most likely tokens: one goes if what stands before it in descending order reaches p."""
    if p is None or p >= 1:
        return probabilities
    ordered, indices = probabilities.sort(dim=-1, descending=True)
    gone = ordered.cumsum(dim=-1) - ordered >= p
    kept = ordered.masked_fill(gone, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, indices, kept)
    return kept / kept.sum(dim=-1, keepdim=True)


@torch.no_grad()
def sample(
    step: Callable[[Tensor], Tensor],
    count: int,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Codes ``(count, length)``, one after the other.

    Args:
        step: codes so far, filled up to ``(count, length)``, to the logits ``(count, length, V)`` of every place.
        count: sequences.
        length: codes of each.
        temperature: divides the logits, before top-k and top-p.
        top_k: codes that are kept.
        top_p: share of the probability that is kept.
        generator: of the draws.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    codes = torch.zeros(count, length, dtype=torch.long)
    for place in range(length):
        logits = keep_top_k(step(codes)[:, place] / temperature, top_k)
        chances = keep_top_p(logits.softmax(dim=-1), top_p)
        codes[:, place] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return codes
