"""A pretraining method around an encoder of a named size, in one call."""

from __future__ import annotations

from typing import Any

from adpe.methods.mae import MaskedAutoencoder
from adpe.models.factory import create_encoder

PRETRAINING_OPTIONS = (
    "mask_tokens",
    "adversary",
    "adversary_norm",
    "adversary_epsilon",
    "adversary_variant",
    "mask_ratio",
    "norm_pix_loss",
    "decoder_embed_dim",
    "decoder_depth",
    "decoder_num_heads",
)


def create_model(name: str, **options: Any) -> MaskedAutoencoder:
    """Masked autoencoder around an encoder of a named size.

    Args:
        name: ``adpe_vit_{tiny,small,base,large,huge}_patch{pixels}``.
        options: of :class:`MaskedAutoencoder` (``mask_tokens``, ``adversary``, ``mask_ratio``, ``decoder_depth``...)
            and of :class:`VisionTransformer` (``position``, ``img_size``...). The coordinate adversary and the
            random control on relative positions work on the interpolated form, which ``position="relative"`` then
            stands for.

    Raises:
        ValueError: for an unknown name, or options that do not go together.
    """
    if options.get("adversary") in ("coordinate", "random") and options.get("position") == "relative":
        options["position"] = "relative_interpolated"
    pretraining = {key: options.pop(key) for key in PRETRAINING_OPTIONS if key in options}
    return MaskedAutoencoder(create_encoder(name, **options), **pretraining)
