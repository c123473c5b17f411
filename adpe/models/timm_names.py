"""Our encoders as models of timm, which has to be installed: names, ``pretrained_cfg``, ``features_only``, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from adpe.models.factory import PUBLISHED, encoder_options
from adpe.models.vit import VisionTransformer

# What :func:`adpe.models.timm_names.pretrained_cfg` says of every one.
_COMMON = {
    "interpolation": "bicubic",
    "crop_pct": 224 / 256,  # of MAE's test transform
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


def pretrained_cfg(
    input_size: tuple[int, int, int] = (3, 224, 224),
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    num_classes: int = 1000,
) -> dict[str, Any]:
    """What timm keeps of a model beside its weights, for ``timm.data.resolve_model_data_config`` among others.

    Args:
        input_size: channels, height and width.
        mean: of the channels, for pixels in 0..1.
        std: likewise.
        num_classes: of the head; 0 has none.
    """
    sizes = {"input_size": tuple(input_size), "num_classes": num_classes}
    return {**_COMMON, **sizes, "mean": tuple(mean), "std": tuple(std)}


# Where timm looks for them when a model is registered.
default_cfgs = generate_default_cfgs({name: pretrained_cfg() for name in PUBLISHED})


class TimmVisionTransformer(VisionTransformer):
    """The encoder with what timm's feature extraction asks of a model.

    Attributes:
        feature_info: for every block its name, channels, and reduction of the image's side.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.feature_info = [
            {"module": f"blocks.{index}", "num_chs": self.embed_dim, "reduction": self.patch_size}
            for index in range(len(self.blocks))
        ]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last one asked for (timm's name); returns the indices, counted from the start."""
        kept, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = self.head = nn.Identity()
        return kept


def register() -> None:
    """Register the named sizes with timm, once."""
    for name in PUBLISHED:
        if not is_model(name):
            register_model(_entrypoint(name))


def _entrypoint(name: str):
    def build(**options: Any) -> TimmVisionTransformer:
        return TimmVisionTransformer(**{**encoder_options(name), **options})

    def entrypoint(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
        if pretrained and not pretrained_cfg:
            raise ValueError(f"No weights are published for {name}: load yours with adpe.load_checkpoint.")
        if options.get("features_only"):
            options.setdefault("num_classes", 0)
        return build_model_with_cfg(
            build, name, pretrained, pretrained_cfg=pretrained_cfg, pretrained_filter_fn=_weights,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"}, **options,
        )  # fmt: skip

    entrypoint.__name__ = name
    entrypoint.__module__ = __name__
    return entrypoint


def _weights(state: Mapping[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """An encoder's tensors in a file of ours, by the names of the model.

    Raises:
        ValueError: for a tensor that the model lacks or the file, besides those of a head that is added: timm lets such
            pass where the number of classes is another.
    """
    inside = any(name.startswith("encoder.") for name in state)
    kept = {
        name.removeprefix("encoder."): tensor
        for name, tensor in state.items()
        if not inside or name.startswith("encoder.")
    }
    head = ("head.", "fc_norm.")
    if model.num_classes:
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith("norm.")}
    own = model.state_dict()
    missing = [name for name in own if name not in kept and not name.startswith(head)]
    unknown = [name for name in kept if name not in own]
    if missing or unknown:
        raise ValueError(f"The weights do not fit: missing {missing[:3]}, unknown {unknown[:3]}.")
    return kept
