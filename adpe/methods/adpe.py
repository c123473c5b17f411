"""AdPE (arXiv 2303.07598): MAE+ whose hidden patches stand at positions that an adversary moves.

One backward pass serves both players: the model's parameters step down the loss, the adversary's step up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from adpe.methods.adversary import Adversary, Mode, Norm, Variant, build_adversary
from adpe.methods.base import Progress, decay_groups
from adpe.methods.mae import Stage
from adpe.methods.mae_plus import MAEPlus
from adpe.methods.masks.masking import Mask
from adpe.models.attention import RelativeTerm
from adpe.models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AdPE(MAEPlus):
    """MAE+ with an adversary on positions.

    Args:
        encoder: a :class:`VisionTransformer` without classes; its `position` holds for the decoder too.
        adversary: "embedding", "coordinate", or "random", the control that moves as far without an adversary.
        adversary_norm: projection of the adversary, "l2", "linf" or None.
        adversary_epsilon: bound of the projection.
        adversary_variant: of the relative embedding adversary, "masked_keys" or "reference" (acts on nothing).
        options: of :class:`MAE`.

    Raises:
        ValueError: for options that do not go together; the message says which.
    """

    adversary: Adversary

    def __init__(
        self,
        encoder: VisionTransformer,
        adversary: Mode = "coordinate",
        adversary_norm: Norm | None = None,
        adversary_epsilon: float | None = None,
        adversary_variant: Variant = "masked_keys",
        **options: Any,
    ) -> None:
        if encoder.pos_embed is not None:
            raise ValueError("An adversary needs the sine-cosine pos_embed: set learned_pos_embed=False.")
        super().__init__(encoder, **options)
        self.mode = adversary
        self.adversary = build_adversary(
            encoder.position,  # type: ignore[arg-type]
            adversary,
            (encoder.embed_dim, len(encoder.blocks), encoder.num_heads),
            (self.decoder.embed.out_features, len(self.decoder.blocks), self.decoder.num_heads),
            adversary_variant,
            adversary_norm,
            adversary_epsilon,
            token=self.mask_token,
        )
        if self.adversary.mask_token(None) is not None:
            self.mask_token = None

    @classmethod
    def build(cls, model: str, encoder_options: dict[str, Any], **options: Any) -> AdPE:
        # The coordinate adversary and its control move continuous offsets.
        if options.get("adversary", "coordinate") != "embedding" and encoder_options.get("position") == "relative":
            encoder_options = {**encoder_options, "position": "relative_interpolated"}
        return super().build(model, encoder_options, **options)  # type: ignore[return-value]

    def masked_token(self) -> Tensor:
        token = self.adversary.mask_token(self.mask_token)
        assert token is not None
        return token

    def patch_positions(self, positions: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        return self.adversary.patch_positions(positions, mask.hidden, grid)

    def relative_terms(self, stage: Stage, grid: tuple[int, int], mask: Mask) -> list[RelativeTerm | None]:
        return self.adversary.relative_terms(stage, super().relative_terms(stage, grid, mask), mask.hidden)

    def parameter_groups(
        self, lr: float, weight_decay: float, adversary_lr: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """The groups of MAE, and the adversary's, which ascends at `adversary_lr` (`lr` if None) without decay."""
        if options:
            raise TypeError(f"AdPE has no paramwise_cfg {', '.join(sorted(options))}.")
        ascending = self.ascending()
        groups = decay_groups(self, lr, weight_decay, without=ascending)
        if ascending:
            rate = lr if adversary_lr is None else adversary_lr
            ascent = {"lr": rate, "weight_decay": 0.0, "maximize": True}
            groups.append({"name": "adversary", "params": list(ascending.values()), **ascent})
        return groups

    def after_step(self, progress: Progress) -> None:
        self.adversary.project()

    def ascending(self) -> dict[str, nn.Parameter]:
        return {f"adversary.{name}": parameter for name, parameter in self.adversary.named_parameters()}

    @property
    def ascent_is_bounded(self) -> bool:
        return self.adversary.norm is not None

    @property
    def title(self) -> str:
        kind = "APE" if self.encoder.position == "absolute" else "RPE"
        return f"random shifts {kind}" if self.mode == "random" else f"AdPE {kind} {self.mode}"

    def scalars(self) -> dict[str, float]:
        from adpe.methods.adversary_figures import adversary_scalars

        return adversary_scalars(self.adversary) if self.adversary.learns else {}

    def figures(self, views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Figure]:
        from adpe.methods.adversary_figures import draw_adversary

        figures = super().figures(views, mean, std)
        if self.adversary.learns:
            figures["adversary"] = draw_adversary(self, self.encoder.patch_embed.grid(views[0][:, 0]))
        return figures
