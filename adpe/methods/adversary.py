"""The adversary: positions that learn to make masked patches hard to reconstruct (AdPE, arXiv 2303.07598).

One backward pass serves both players: the model's parameters step down the loss, the adversary's step up
(`torch.optim.AdamW` groups with ``maximize=True``). The adversary is global: the same few numbers for every image,
carried from step to step. It acts on masked patches alone.

========  ==========  ===========================  ==================================================================
position  mode        parameters                   what it perturbs
========  ==========  ===========================  ==================================================================
absolute  embedding   ``token (1, 1, D)``          the vector that stands at masked patches: it *is* the mask token
absolute  coordinate  ``shift (2,)``               (column, row) of masked patches before their sine-cosine code
relative  embedding   ``(layers, d)`` a stack      every bucket of the relative table, where the key is masked
relative  coordinate  ``(layers, 2)`` a stack      (row, column) offsets of masked queries, interpolated buckets
any       random      none                         as coordinate, by a fresh uniform draw: the control without adversary
========  ==========  ===========================  ==================================================================

The reference's relative embedding acts on masked *queries*: the same number is added to every logit of a row and the
softmax does not see it. That form is ``variant="reference"``, for parity alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.models.attention import RelativeTerm
from adpe.models.pos_embed import (
    CLASS_BUCKET,
    axis_weights,
    contract,
    grid_coordinates,
    pair_weights,
    relative_logits,
    sincos,
    token_weights,
)
from adpe.models.vit import Position

Mode = Literal["embedding", "coordinate", "random"]
Norm = Literal["l2", "linf"]
Variant = Literal["masked_keys", "reference"]


class Adversary(nn.Module):
    """Contract of an adversary: its parameters ascend, `project` bounds them, three methods say what they perturb.

    The masked autoencoder calls `mask_token`, `patch_positions` and `relative_terms`; each returns what it was given
    unless the adversary perturbs it.

    Args:
        norm: projection after every step: "l2" scales each adversary tensor (each layer's row of a stack) to norm at
            most `epsilon`, "linf" clamps it to ``[-epsilon, epsilon]``, None leaves it free. The paper's choice is in a
            supplementary table that is not public; the reference's default is None.
        epsilon: bound of the projection, in the unit of the parameter (patches, or embedding units).

    Raises:
        ValueError: for an unknown norm, or a norm without a positive epsilon.
    """

    def __init__(self, norm: Norm | None = None, epsilon: float | None = None) -> None:
        super().__init__()
        if norm is not None and norm not in get_args(Norm):
            raise ValueError(f"adversary_norm must be l2, linf or None; got {norm!r}.")
        if (norm is None) != (epsilon is None) or (epsilon is not None and not epsilon > 0):
            raise ValueError(
                f"adversary_norm={norm!r} with adversary_epsilon={epsilon}: a projection needs both, epsilon positive."
            )
        self.norm = norm
        self.epsilon = epsilon

    @property
    def learns(self) -> bool:
        """Whether there are parameters that ascend; the random controls have none."""
        return next(self.parameters(), None) is not None

    def mask_token(self, token: Tensor | None) -> Tensor | None:
        """The vector ``(1, 1, D)`` that stands at masked patches."""
        return token

    def patch_positions(self, positions: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
        """Absolute positions of the patches of the encoder, ``(1, L, D)`` to ``(1 or B, L, D)``; masked is (B, L)."""
        return positions

    def relative_terms(
        self, stage: Literal["encoder", "decoder"], terms: list[RelativeTerm | None], masked: Tensor
    ) -> list[RelativeTerm | None]:
        """Relative terms of the blocks of one stage; masked is (B, L), bool."""
        return terms

    @torch.no_grad()
    def project(self) -> None:
        """Return every parameter to the ball of radius `epsilon`. Safe at zero; call it after every step."""
        if self.norm is None or self.epsilon is None:
            return
        for parameter in self.parameters():
            if self.norm == "linf":
                parameter.clamp_(-self.epsilon, self.epsilon)
            else:
                tensors = self.tensors(parameter).flatten(1)
                norms = tensors.norm(dim=1, keepdim=True).clamp(min=self.epsilon)
                parameter.copy_((tensors * (self.epsilon / norms)).view_as(parameter))

    def tensors(self, parameter: Tensor) -> Tensor:
        """The separate tensors of a parameter as rows: one, unless the parameter is a stack over layers."""
        return parameter.unsqueeze(0)


class MaskTokenAdversary(Adversary):
    """Absolute positions, embedding mode: the token at masked patches ascends; there is no other mask token."""

    def __init__(self, token: nn.Parameter, norm: Norm | None = None, epsilon: float | None = None) -> None:
        super().__init__(norm, epsilon)
        self.token = token

    def mask_token(self, token: Tensor | None) -> Tensor | None:
        return self.token


class CoordinateAdversary(Adversary):
    """Absolute positions, coordinate mode: masked patches are encoded at ``(column + a0, row + a1)``."""

    def __init__(self, norm: Norm | None = None, epsilon: float | None = None) -> None:
        super().__init__(norm, epsilon)
        self.shift = nn.Parameter(torch.zeros(2))

    def patch_positions(self, positions: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
        return displace_patches(positions, masked, grid, self.shift)


class RelativeAdversary(Adversary):
    """A stack of one row a layer for the encoder and one for the decoder; zero at the start."""

    def __init__(
        self, encoder_shape: tuple[int, int], decoder_shape: tuple[int, int], norm: Norm | None, epsilon: float | None
    ) -> None:
        super().__init__(norm, epsilon)
        self.encoder = nn.Parameter(torch.zeros(encoder_shape))
        self.decoder = nn.Parameter(torch.zeros(decoder_shape))

    def tensors(self, parameter: Tensor) -> Tensor:
        return parameter

    def stack(self, stage: Literal["encoder", "decoder"]) -> Tensor:
        """The rows of a stage, ``(layers, ...)``."""
        return self.encoder if stage == "encoder" else self.decoder


class RelativeEmbeddingAdversary(RelativeAdversary):
    """Relative positions, embedding mode: ``r + a`` in every bucket, where the key (or the query) is masked."""

    def __init__(
        self,
        encoder_shape: tuple[int, int],
        decoder_shape: tuple[int, int],
        variant: Variant = "masked_keys",
        norm: Norm | None = None,
        epsilon: float | None = None,
    ) -> None:
        super().__init__(encoder_shape, decoder_shape, norm, epsilon)
        if variant not in get_args(Variant):
            raise ValueError(f"adversary_variant must be one of {', '.join(get_args(Variant))}; got {variant!r}.")
        self.variant = variant

    def relative_terms(
        self, stage: Literal["encoder", "decoder"], terms: list[RelativeTerm | None], masked: Tensor
    ) -> list[RelativeTerm | None]:
        name = "key_shift" if self.variant == "masked_keys" else "query_shift"
        return [_on_masked(term, masked, **{name: row}) for term, row in zip(terms, self.stack(stage), strict=True)]


class OffsetAdversary(RelativeAdversary):
    """Relative positions, coordinate mode: masked queries see offsets ``(row + a0, column + a1)``."""

    def __init__(
        self, encoder_depth: int, decoder_depth: int, norm: Norm | None = None, epsilon: float | None = None
    ) -> None:
        super().__init__((encoder_depth, 2), (decoder_depth, 2), norm, epsilon)

    def relative_terms(
        self, stage: Literal["encoder", "decoder"], terms: list[RelativeTerm | None], masked: Tensor
    ) -> list[RelativeTerm | None]:
        return displace_offsets(terms, masked, self.stack(stage))


class RandomShift(Adversary):
    """The control of :class:`CoordinateAdversary`: masked patches shift by a draw from the ball of radius `epsilon`.

    Uniform, one draw a forward pass for the whole batch (and one a rank), as the adversary's shift is one for all.
    """

    def patch_positions(self, positions: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
        return displace_patches(positions, masked, grid, self.draw(1, positions.device)[0])

    def draw(self, rows: int, device: torch.device) -> Tensor:
        """Uniform in the ball: ``(rows, 2)``, patches; the square of side ``2 epsilon`` (linf) or the disc (l2)."""
        assert self.epsilon is not None
        points = self.epsilon * (2 * torch.rand(rows, 2, device=device) - 1)
        if self.norm == "l2":
            radius = self.epsilon * torch.rand(rows, 1, device=device).sqrt()
            angle = 2 * torch.pi * torch.rand(rows, 1, device=device)
            points = radius * torch.cat([angle.cos(), angle.sin()], dim=1)
        return points


class RandomOffsets(RandomShift):
    """The control of :class:`OffsetAdversary`: the same for the offsets of masked queries, one draw a layer."""

    def patch_positions(self, positions: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
        return positions

    def relative_terms(
        self, stage: Literal["encoder", "decoder"], terms: list[RelativeTerm | None], masked: Tensor
    ) -> list[RelativeTerm | None]:
        return displace_offsets(terms, masked, self.draw(len(terms), masked.device))


def displace_patches(positions: Tensor, masked: Tensor, grid: tuple[int, int], shift: Tensor) -> Tensor:
    """Absolute positions ``(1, L, D)`` to ``(B, L, D)``: masked patches, ``(B, L)``, at ``(column, row) + shift``."""
    coordinates = grid_coordinates(*grid, shift.dtype, shift.device)
    displaced = sincos(coordinates + shift, positions.shape[-1]).to(positions.dtype)
    return torch.where(masked.unsqueeze(-1), displaced, positions)


def displace_offsets(terms: list[RelativeTerm | None], masked: Tensor, shifts: Tensor) -> list[RelativeTerm | None]:
    """Relative terms whose masked queries, ``(B, L)``, see ``(row, column) + shifts[layer]``; shifts (layers, 2)."""
    assert terms[0] is not None
    h, w = terms[0].grid
    clean = token_weights(h, w, True, shifts.dtype, shifts.device)
    shifted = pair_weights(*axis_weights(h, w, True, shifts.dtype, shifts.device, shifts), interpolate=True)
    shifted = F.pad(shifted, (1, 0, 0, 0, 1, 0))  # no bucket but the class token's own for pairs with it
    patches, cls = clean.split([CLASS_BUCKET, 1], dim=1)
    return [
        _on_masked(term, masked, displaced_weights=torch.cat([patches, weights, cls], dim=1))
        for term, weights in zip(terms, shifted, strict=True)
    ]


@dataclass(frozen=True)
class PerturbedTerm(RelativeTerm):
    """A relative term with what an adversary does to it.

    Attributes:
        masked: ``(B, 1, N, 1)``, 1 at masked patches; an adversary acts on those alone.
        displaced_weights: ``(N, 99, N)`` weights of the 49 buckets for visible queries, of the 49 for masked queries,
            and of the class bucket; replaces the grid's weights.
        key_shift: ``(d,)`` added to every bucket of the table where the key is masked.
        query_shift: ``(d,)`` added to every bucket of the table where the query is masked. The softmax does not see it.
    """

    masked: Tensor = field(kw_only=True)
    displaced_weights: Tensor | None = None
    key_shift: Tensor | None = None
    query_shift: Tensor | None = None

    def keys(self, k: Tensor) -> Tensor:
        """With the key shift: ``q . (k_j + a)`` adds ``q . a`` to every bucket of key j."""
        return k if self.key_shift is None else k + (self.masked * self.key_shift).to(k.dtype)

    def logits(self, q: Tensor, table: Tensor) -> Tensor:
        scores, masked = self.scores(q, table), self.masked.to(q.dtype)
        if self.query_shift is not None:
            scores = scores + masked * (q @ self.query_shift.to(q.dtype).unsqueeze(-1))
        if self.displaced_weights is None:
            return relative_logits(scores, self.grid, self.interpolate, self.weights)
        patch, cls = scores.split([CLASS_BUCKET, 1], dim=-1)
        hidden = patch * masked
        return contract(torch.cat([patch - hidden, hidden, cls], dim=-1), self.displaced_weights.to(q.dtype))


def _on_masked(term: RelativeTerm | None, masked: Tensor, **perturbation: Any) -> RelativeTerm:
    assert term is not None
    indicator = F.pad(masked, (1, 0))[:, None, :, None].to(next(iter(perturbation.values())).dtype)
    clean = {each.name: getattr(term, each.name) for each in fields(RelativeTerm)}
    return PerturbedTerm(**clean, masked=indicator, **perturbation)


def build_adversary(
    position: Position,
    mode: Mode,
    encoder: tuple[int, int, int],
    decoder: tuple[int, int, int],
    variant: Variant = "masked_keys",
    norm: Norm | None = None,
    epsilon: float | None = None,
    token: nn.Parameter | None = None,
) -> Adversary:
    """The adversary of a kind of position and mode.

    Args:
        position: of the encoder; the coordinate mode needs the interpolated form of relative positions.
        mode: "embedding", "coordinate", or "random" for the control.
        encoder: width, depth and heads of the encoder.
        decoder: width, depth and heads of the decoder.
        variant: of the relative embedding adversary.
        norm: see :class:`Adversary`.
        epsilon: see :class:`Adversary`.
        token: mask token ``(1, 1, D)`` that the embedding adversary on absolute positions takes over; drawn if None.

    Raises:
        ValueError: for an unknown mode, one that the position cannot have, or a control without a ball.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"adversary must be embedding, coordinate, random or None; got {mode!r}.")
    if position == "none":
        raise ValueError(f"adversary={mode!r} acts on positions, and position='none' has none.")
    if variant != "masked_keys" and (position == "absolute" or mode != "embedding"):
        raise ValueError(f"adversary_variant={variant!r} is of the embedding adversary on relative positions alone.")
    if mode == "random" and norm is None:
        raise ValueError("adversary='random' draws from a ball: set adversary_norm and adversary_epsilon (patches).")
    if position == "absolute":
        if mode == "embedding":
            token = nn.Parameter(torch.randn(1, 1, encoder[0]) * 0.02) if token is None else token
            return MaskTokenAdversary(token, norm, epsilon)
        return CoordinateAdversary(norm, epsilon) if mode == "coordinate" else RandomShift(norm, epsilon)
    if mode != "embedding":
        if position != "relative_interpolated":
            raise ValueError(f"adversary={mode!r} moves continuous offsets: set position='relative_interpolated'.")
        if mode == "random":
            return RandomOffsets(norm, epsilon)
        return OffsetAdversary(encoder[1], decoder[1], norm, epsilon)
    shapes = [(depth, width // heads) for width, depth, heads in (encoder, decoder)]
    return RelativeEmbeddingAdversary(shapes[0], shapes[1], variant, norm, epsilon)
