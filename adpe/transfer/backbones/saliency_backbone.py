"""Saliency-guided attention, ours after SGT (arXiv 2206.08567), as a backbone of mmsegmentation and mmdetection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS

from adpe.models.backbones.saliency_vit import SaliencyViT
from adpe.transfer.backbones.vit_backbone import AdPEViT


@MODELS.register_module()
class AdPESaliencyViT(AdPEViT, SaliencyViT):
    """`AdPEViT` whose blocks before the last see only the patches that a chooser keeps; its maps are whole.

    In the maps of blocks before the residual, dropped patches are their embeddings. Parameters are the encoder's, so
    every checkpoint of it loads. In dense prediction most blocks thus lose most of the detail: this is for comparing
    choosers, and a row of one needs those of ``type="centre"`` and ``type="random"`` beside it.

    Args:
        saliency: of :class:`adpe.models.backbones.saliency_vit.SaliencyViT`. With ``type="attention"`` and no
            ``encoder`` the frozen encoder is the one of `init_cfg`. ``mean`` and ``std`` are for pixels in 0..1.
        options: of :class:`AdPEViT`; a class token, absolute positions and no windows.

    Raises:
        UserError: as `AdPEViT`; for another chooser or options of it out of range.
    """

    def __init__(self, *args: Any, saliency: Mapping[str, Any] | None = None, **options: Any) -> None:
        said = dict(saliency or {})
        start = (options.get("init_cfg") or {}).get("checkpoint")
        if said.get("type") == "attention" and start:
            said.setdefault("encoder", start)
        super().__init__(*args, saliency=said, **options)
