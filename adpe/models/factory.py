"""Named models: sizes as published, one call to build one, registration with timm.

Sizes: DeiT (arXiv 2012.12877) for Tiny and Small, ViT (arXiv 2010.11929) for Base, Large and Huge.
"""

from __future__ import annotations

import re
from typing import Any

from adpe.errors import require
from adpe.models.vit import VisionTransformer

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
PUBLISHED = [f"adpe_vit_{size}_patch{14 if size == 'huge' else 16}" for size in SIZES]


def encoder_options(name: str) -> dict[str, int]:
    """Options of :class:`VisionTransformer` that a name stands for, e.g. ``adpe_vit_base_patch16``.

    Raises:
        ValueError: for a name that is not ``adpe_vit_{tiny,small,base,large,huge}_patch{pixels}``.
    """
    match = re.fullmatch(r"adpe_vit_([a-z]+)_patch(\d+)", name)
    if match is None or match[1] not in SIZES:
        raise ValueError(f"Unknown model {name!r}: expected adpe_vit_{{{','.join(SIZES)}}}_patch{{pixels}}.")
    return {**SIZES[match[1]], "patch_size": int(match[2])}


def create_encoder(name: str, **options: Any) -> VisionTransformer:
    """Encoder of a named size; `options` go to :class:`VisionTransformer` and may override the size.

    An option that is None is as if it were left out.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return VisionTransformer(**{**encoder_options(name), **given})


def register_with_timm() -> None:
    """Make ``timm.create_model("adpe_vit_base_patch16", num_classes=1000)`` build our encoder.

    With ``features_only=True`` it gives the maps of chosen blocks; ``pretrained_cfg`` says how images are normalised.
    ``hf-hub:OWNER/NAME`` and ``local-dir:FOLDER`` read what :func:`adpe.save_pretrained` wrote.
    """
    require("timm", "requirements/runtime.txt")
    from adpe.models.timm_names import register

    register()
