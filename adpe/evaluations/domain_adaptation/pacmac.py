"""PACMAC (arXiv 2206.08222): adapt a classifier to a domain without labels by a committee of masked views.

A target image teaches itself with the prediction on its clean copy if all views of a committee, disjoint and equally
attended, agree with it, or if the prediction is confident.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.models.attention import RelativeTerm, attention_weights
from adpe.models.layers import run_blocks
from adpe.models.pos_embed import CLASS_BUCKET, token_weights
from adpe.models.vit import VisionTransformer

NoAgreement = Literal["drop", "reference"]
ProbeMode = Literal["train", "eval"]


class View(NamedTuple):
    """Patches that a view keeps.

    Attributes:
        mask: ``(B, L)``, 0 where kept.
        kept: ``(B, n)`` indices, in the order in which they enter the encoder.
    """

    mask: Tensor
    kept: Tensor


def committee_views(attention: Tensor, views: int, mask_ratio: float) -> list[View]:
    """Disjoint views of equal attention.

    View v keeps, of the patches that no earlier one has, sorted by decreasing attention, those of rank ``0, k - v,
    2 (k - v), ...``; of equal patches the lower index comes first.

    Args:
        attention: ``(B, L)``; it only orders patches.
        views: k.
        mask_ratio: share of the patches that a view hides.

    Raises:
        UserError: if there are not patches enough.
    """
    batch, patches = attention.shape
    count = int(patches * (1 - mask_ratio))
    if count < 1 or views < 1 or views * count > patches:
        raise UserError(f"committee of {views} views of {count} patches each: the image has {patches}.")
    left = attention.argsort(dim=1, descending=True, stable=True)
    found = []
    for number in range(views):
        step = views - number
        places = torch.arange(count, device=attention.device) * step
        kept = left[:, places]
        mask = torch.ones(batch, patches, device=attention.device).scatter_(1, kept, 0.0)
        found.append(View(mask, kept))
        stays = torch.ones(left.shape[1], dtype=torch.bool, device=attention.device)
        stays[places] = False
        left = left[:, stays]
    return found


def random_view(noise: Tensor, mask_ratio: float) -> View:
    """The patches of smallest noise ``(B, L)``, as MAE keeps them."""
    kept = noise.argsort(dim=1, stable=True)[:, : int(noise.shape[1] * (1 - mask_ratio))]
    return View(torch.ones_like(noise).scatter_(1, kept, 0.0), kept)


@dataclass(frozen=True)
class KeptTerm(RelativeTerm):
    """A relative term among tokens that are kept, which stand where they stood in the image.

    Attributes:
        pairs: ``(B, n, n, K)`` weights of the buckets for every pair (query, key) of kept tokens.
    """

    pairs: Tensor = field(kw_only=True)

    def logits(self, q: Tensor, table: Tensor) -> Tensor:
        scores = self.scores(q, table)[..., : self.pairs.shape[-1]]
        return torch.einsum("bhik,bijk->bhij", scores, self.pairs.to(q.dtype))


class DomainClassifier(nn.Module):
    """An encoder under a linear layer, which classifies whole images and parts of them.

    Args:
        encoder: without windows, ``use_rel_pos`` and ``use_rel_pos_bias``. With classes it pools the mean of the
            patches (``fc_norm``), without the class token after the final norm.
        head: on the class token; None for the encoder's own.

    Raises:
        UserError: for another encoder, or for none or two heads.
    """

    def __init__(self, encoder: VisionTransformer, head: nn.Linear | None = None) -> None:
        super().__init__()
        if encoder.needs_grid:
            raise UserError("PACMAC: an encoder with windows, use_rel_pos or use_rel_pos_bias cannot drop patches.")
        if head is not None and not encoder.num_prefix_tokens:
            raise UserError("PACMAC: a head on the class token, and the encoder has none.")
        if (head is None) != bool(encoder.num_classes):
            raise UserError("PACMAC: the encoder has classes, or there is a head on its class token; not both.")
        self.encoder, self.head = encoder, head

    def pooled(self, tokens: Tensor) -> Tensor:
        """Features ``(B, D)`` under the linear layer, of tokens behind the last block."""
        encoder = self.encoder
        if self.head is None:
            return encoder.fc_norm(encoder.norm(tokens)[:, encoder.num_prefix_tokens :].mean(dim=1))
        return encoder.norm(tokens)[:, 0]

    def classify(self, features: Tensor) -> Tensor:
        """Logits of pooled features."""
        return (self.encoder.head if self.head is None else self.head)(features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of whole images."""
        tokens, grid = self.encoder.embed(images)
        return self.classify(self.pooled(self._run(tokens, self.encoder.relative_terms(grid))))

    def of_view(self, images: Tensor, view: View) -> Tensor:
        """Pooled features of the patches that a view keeps, with their positions."""
        tokens, grid = self.encoder.embed(images)
        prefix = self.encoder.num_prefix_tokens
        classes = torch.arange(prefix, device=view.kept.device).expand(len(view.kept), -1)
        places = torch.cat([classes, view.kept + prefix], dim=1)
        kept = tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return self.pooled(self._run(kept, self._kept_terms(grid, places)))

    def _kept_terms(self, grid: tuple[int, int], places: Tensor) -> list[RelativeTerm | None]:
        term, depth = self.encoder.relative_term(grid), len(self.encoder.blocks)
        if term is None:
            return [None] * depth
        weights = token_weights(*grid, term.interpolate, torch.float32, places.device)
        if not self.encoder.num_prefix_tokens:
            weights = weights[1:, :CLASS_BUCKET, 1:]
        pairs = weights[places[:, :, None], :, places[:, None, :]]
        same: dict[str, Any] = {each.name: getattr(term, each.name) for each in fields(RelativeTerm)}
        return [KeptTerm(**same, pairs=pairs)] * depth

    def _run(self, tokens: Tensor, terms: list[RelativeTerm | None]) -> Tensor:
        return run_blocks(self.encoder.blocks, tokens, terms, self.encoder.grad_checkpointing)

    @torch.no_grad()
    def last_attention(self, images: Tensor, queries: slice = slice(None)) -> Tensor:
        """Attention ``(B, H, Q, N)`` of some tokens of the last block, after the softmax."""
        encoder = self.encoder
        tokens, grid = encoder.embed(images)
        terms = encoder.relative_terms(grid)
        x = run_blocks(encoder.blocks[:-1], tokens, terms[:-1])
        normed: Tensor = encoder.blocks[-1].norm1(x)  # type: ignore[operator]
        asked = encoder.attentions()[-1].terms(normed, terms[-1])
        return attention_weights(asked, queries, encoder.num_prefix_tokens)

    def patch_attention(self, images: Tensor) -> Tensor:
        """Attention to the patches ``(B, L)``, the mean over heads and class tokens; without these over the patches."""
        prefix = self.encoder.num_prefix_tokens
        return self.last_attention(images, slice(prefix or None))[..., prefix:].mean(dim=(1, 2))


class Selection(NamedTuple):
    """What a committee says of a batch of target images.

    Attributes:
        views: of the committee.
        logits: ``(B, C)`` of every view.
        pseudo_labels: ``(B,)``.
        confidence: ``(B,)``.
        consistent: ``(B,)`` bool, all views predict the pseudo-label.
        confident: ``(B,)`` bool.
        agreed: ``(B,)`` bool, one view at least does.
        chosen: ``(B, C)`` logits of the last view that agrees, zeros where none does.
    """

    views: list[View]
    logits: list[Tensor]
    pseudo_labels: Tensor
    confidence: Tensor
    consistent: Tensor
    confident: Tensor
    agreed: Tensor
    chosen: Tensor

    @property
    def selected(self) -> Tensor:
        """Images that teach themselves."""
        return self.consistent | self.confident


class Step(NamedTuple):
    """One step of adaptation.

    Attributes:
        loss: what is minimised.
        source: loss of the labelled source images.
        target: weighted loss of the selected target images; None if none is selected.
        source_logits: ``(B, C)``.
        target_logits: ``(B, C)`` of the clean target images, without gradient.
        selection: of the target images.
    """

    loss: Tensor
    source: Tensor
    target: Tensor | None
    source_logits: Tensor
    target_logits: Tensor
    selection: Selection


class Committee:
    """The rule of selection and the loss.

    Args:
        views: k of the committee; 0 is the baseline of confidence alone, where a selected image is learnt whole.
        mask_ratio: share of the patches that a view hides.
        threshold: of the confidence, above which an image is selected without the committee.
        weight: of the target's loss.
        label_smoothing: of both losses.
        no_agreement: a confident image with which no view agrees: "drop" leaves it out, "reference" lets it into the
            mean with logits of zero, which have no gradient and dilute it.
        seeding: whether attention seeds the views; else they are random and disjoint, the control.
        probe_mode: mode of the model on target images: "train", as published, has stochastic depth act on
            pseudo-labels, attention and views; "eval" does not.

    Raises:
        UserError: for options that cannot be.
    """

    def __init__(
        self,
        views: int = 2,
        mask_ratio: float = 0.75,
        threshold: float = 0.5,
        weight: float = 0.1,
        label_smoothing: float = 0.1,
        no_agreement: NoAgreement = "drop",
        seeding: bool = True,
        probe_mode: ProbeMode = "train",
    ) -> None:
        for key, value, kind in (("no_agreement", no_agreement, NoAgreement), ("probe_mode", probe_mode, ProbeMode)):
            if value not in get_args(kind):
                raise UserError(f"PACMAC: {key} = {value!r} is none of {', '.join(get_args(kind))}.")
        if isinstance(views, bool) or not isinstance(views, int) or views < 0:
            raise UserError(f"PACMAC: views = {views!r}, expected a whole number, 0 for none.")
        shares = {"mask_ratio": mask_ratio, "threshold": threshold, "label_smoothing": label_smoothing}
        for key, share in shares.items():
            if not 0 <= share < 1:
                raise UserError(f"PACMAC: {key} = {share!r}, expected a number from 0 to below 1.")
        if not weight > 0:
            raise UserError(f"PACMAC: weight = {weight!r}, expected a positive number.")
        self.views, self.mask_ratio, self.threshold, self.weight = views, mask_ratio, threshold, weight
        self.label_smoothing, self.no_agreement, self.seeding = label_smoothing, no_agreement, seeding
        self.probe_mode = probe_mode

    def select(self, model: DomainClassifier, clean_logits: Tensor, augmented: Tensor) -> Selection:
        """Ask the committee about augmented target images, whose clean copies have the logits ``(B, C)``."""
        confidence, pseudo = clean_logits.detach().softmax(dim=-1).max(dim=-1)
        confident = confidence > self.threshold
        if not self.views:
            whole, none = model(augmented), torch.zeros_like(confident)
            return Selection([], [], pseudo, confidence, none, confident, ~none, whole)
        attention = model.patch_attention(augmented)
        if not self.seeding:
            attention = torch.rand_like(attention)
        views = committee_views(attention, self.views, self.mask_ratio)
        logits = [model.classify(model.of_view(augmented, view)) for view in views]
        agrees = torch.stack([one.argmax(dim=-1) == pseudo for one in logits])  # (k, B)
        chosen = torch.zeros_like(logits[0])
        for one, agreeing in zip(logits, agrees, strict=True):
            chosen = torch.where(agreeing.unsqueeze(-1), one, chosen)
        return Selection(views, logits, pseudo, confidence, agrees.all(dim=0), confident, agrees.any(dim=0), chosen)

    def step(self, model: DomainClassifier, source: Tensor, labels: Tensor, clean: Tensor, augmented: Tensor) -> Step:
        """Losses of one batch.

        Args:
            model: that is adapted.
            source: ``(B, 3, H, W)`` augmented source images.
            labels: ``(B,)`` of them.
            clean: target images.
            augmented: the same ones augmented.
        """
        # The reference passes source and clean target as one batch, and no layer mixes images: apart, the target part
        # keeps nothing for a backward pass that it has no part in.
        source_logits = model(source)
        source_loss = F.cross_entropy(source_logits, labels, label_smoothing=self.label_smoothing)
        training = model.training
        model.train(training and self.probe_mode == "train")
        try:
            with torch.no_grad():
                target_logits = model(clean)
            selection = self.select(model, target_logits, augmented)
        finally:
            model.train(training)
        counted = selection.selected
        if self.no_agreement == "drop":
            counted = counted & selection.agreed
        if not bool(counted.any()):
            return Step(source_loss, source_loss, None, source_logits, target_logits, selection)
        own = F.cross_entropy(
            selection.chosen[counted], selection.pseudo_labels[counted], label_smoothing=self.label_smoothing
        )
        target_loss = self.weight * counted.float().mean() * own
        return Step(source_loss + target_loss, source_loss, target_loss, source_logits, target_logits, selection)
