"""Text, or a class, to image codes with an encoder and a decoder (Parti, arXiv 2206.10789), and sampling.

Models of twenty billion parameters are out of reach; these are small ones over the suite's own tokenizers. Two public
decoders are in :mod:`adpe.methods.parti.public_decoders`, for parity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        text_vocabulary: different ones; 0 is padding, and alone the null text.
        image_tokens: codes of an image.
        vocabulary: different ones.
    """

    def __init__(
        self, dim: int, num_heads: int, encoder_blocks: int, decoder_blocks: int, mlp_dim: int, text_tokens: int,
        text_vocabulary: int, image_tokens: int, vocabulary: int,
    ) -> None:  # fmt: skip
        super().__init__()
        shape: dict[str, Any] = {"dropout": 0.0, "activation": F.gelu, "layer_norm_eps": 1e-6, "batch_first": True}
        shape["norm_first"] = True
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(dim, num_heads, mlp_dim, **shape), encoder_blocks, nn.LayerNorm(dim, 1e-6),
            enable_nested_tensor=False,
        )  # fmt: skip
        self.transformer = nn.Transformer(
            dim, num_heads, encoder_blocks, decoder_blocks, mlp_dim, custom_encoder=encoder, **shape
        )
        self.text_embed = nn.Embedding(text_vocabulary, dim)
        self.image_embed = nn.Embedding(vocabulary, dim)
        self.text_pos = nn.Parameter(torch.randn(text_tokens, dim) * 0.02)
        self.image_pos = nn.Parameter(torch.randn(image_tokens, dim) * 0.02)
        self.start = nn.Parameter(torch.randn(dim) * 0.02)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith("_pos"):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def read(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The encoded text ``(B, T, D)`` of ids ``(B, T)`` and lengths ``(B,)``, and ``(B, T)`` True for padding."""
        padding = torch.arange(text.shape[1], device=text.device) >= lengths[:, None]
        source = self.text_embed(text) + self.text_pos[: text.shape[1]]
        return self.transformer.encoder(source, src_key_padding_mask=padding), padding

    def forward(self, text: Tensor, lengths: Tensor, codes: Tensor) -> Tensor:
        """Logits ``(B, n, V)`` of codes ``(B, n)``, each given the text and those before it.

        Args:
            text: ids ``(B, T)``.
            lengths: of the texts, ``(B,)``; what is behind is hidden.
            codes: ``(B, n)``; the last one is not looked at.
        """
        memory, padding = self.read(text, lengths)
        count = codes.shape[1]
        before = torch.cat([self.start.expand(len(codes), 1, -1), self.image_embed(codes[:, :-1])], dim=1)
        causal = torch.full((count, count), float("-inf"), device=codes.device).triu(1)
        hidden = self.transformer.decoder(
            before + self.image_pos[:count], memory, tgt_mask=causal, memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )  # fmt: skip
        return hidden @ self.image_embed.weight.T

    def stepper(self, text: Tensor, lengths: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of the codes so far ``(B, n)`` to the logits ``(B, V)`` of the next, for n = 0, 1, 2, ...

        It keeps the normalised inputs of every block, so that a step runs on one place. In float32 the logits are those
        of :meth:`forward` up to rounding.
        """
        memory, padding = self.read(text, lengths)
        decoder: Any = self.transformer.decoder
        kept: list[Tensor] = [memory[:, :0] for _ in decoder.layers]

        def step(codes: Tensor) -> Tensor:
            place = codes.shape[1]
            last = self.image_embed(codes[:, -1]) if place else self.start.expand(len(codes), -1)
            x = (last + self.image_pos[place]).unsqueeze(1)
            for number, layer in enumerate(decoder.layers):
                kept[number] = torch.cat([kept[number], layer.norm1(x)], dim=1)
                own = kept[number]
                x = x + layer.self_attn(own[:, -1:], own, own, need_weights=False)[0]
                asked = layer.norm2(x)
                x = x + layer.multihead_attn(asked, memory, memory, key_padding_mask=padding, need_weights=False)[0]
                x = x + layer.linear2(F.gelu(layer.linear1(layer.norm3(x))))
            return decoder.norm(x[:, 0]) @ self.image_embed.weight.T

        return step

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
        return F.cross_entropy(self(text, lengths, codes).float().flatten(0, 1), codes.flatten())


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
    """Codes ``(count, length)`` int64, one after the other.

    Args:
        step: codes so far ``(count, n)`` to the logits ``(count, V)`` of the next, guided if at all.
        count: sequences.
        length: codes of each.
        temperature: divides the logits, before top-k and top-p.
        top_k: codes that are kept.
        top_p: share of the probability that is kept.
        generator: of the draws, on the CPU; the same seed gives the same codes on one machine.

    Raises:
        ValueError: for a temperature, top-k or top-p outside its range.
    """
    if not temperature > 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: expected above 0, at least 1, and in (0, 1]."
        )
    codes = torch.zeros(count, 0, dtype=torch.long)
    for _ in range(length):
        logits = keep_top_k(step(codes).float() / temperature, top_k)
        chances = keep_top_p(logits.softmax(dim=-1), top_p)
        drawn = torch.multinomial(chances.cpu(), 1, generator=generator)
        codes = torch.cat([codes.to(drawn.device), drawn], dim=1)
    return codes
