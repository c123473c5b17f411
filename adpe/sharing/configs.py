"""The JSON files beside shared weights: what timm and Hugging Face's transformers build a model from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adpe.errors import UserError, require
from adpe.models.factory import SIZES
from adpe.models.specification import ModelSpecification

# Framework to model_type and class, of transformers.
_TRANSFORMERS = {
    "huggingface_vit": ("vit", "ViTModel"),
    "huggingface_dinov2": ("dinov2", "Dinov2Model"),
    "huggingface_vitmae": ("vit_mae", "ViTMAEModel"),
}
# Types of models whose names are read, see adpe.checkpoints.other_libraries.
_READ = ("vit", "vit_mae", "dinov2", "deit", "beit")


def configs_of(said: ModelSpecification, framework: str) -> dict[str, dict[str, Any]]:
    """File name to contents.

    Args:
        said: of the encoder, as it is written.
        framework: ``"adpe"``, whose ``config.json`` timm reads, or one of Hugging Face's, see
            :data:`adpe.checkpoints.names.Framework`.

    Raises:
        UserError: for an encoder that the framework's config cannot say.
    """
    if framework == "adpe":
        return {"config.json": _timm(said)}
    files = {"config.json": _transformers(said, framework)}
    if said.mean is not None and said.std is not None:
        files["preprocessor_config.json"] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": said.pretrain_img_size[0], "width": said.pretrain_img_size[1]},
            "resample": 3,  # bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(said.mean),
            "image_std": list(said.std),
        }
    return files


def pretrained_cfg_of(said: ModelSpecification) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of a file: the size and the normalisation of pretraining, where it says them."""
    require("timm", "requirements/runtime.txt")
    from adpe.models.timm_names import pretrained_cfg

    known = {name: getattr(said, name) for name in ("mean", "std") if getattr(said, name) is not None}
    return pretrained_cfg((said.in_chans, *said.pretrain_img_size), num_classes=0, **known)


def _timm(said: ModelSpecification) -> dict[str, Any]:
    widths = ("embed_dim", "depth", "num_heads")
    own = {name: getattr(said, name) for name in widths}
    size = next((name for name, sizes in SIZES.items() if sizes == own), "base")
    name = f"adpe_vit_{size}_patch{14 if size == 'huge' else 16}"  # the names that are registered
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": said.embed_dim,
        "model_args": {**said.options(), "num_classes": 0},
        "pretrained_cfg": pretrained_cfg_of(said),
        "adpe_specification": json.loads(said.to_json()),
    }


def _transformers(said: ModelSpecification, framework: str) -> dict[str, Any]:
    kind, architecture = _TRANSFORMERS[framework]
    height, width = said.pretrain_img_size
    hidden = round(said.embed_dim * said.mlp_ratio)
    if height != width:
        raise UserError(f"pretrain_img_size is {height} x {width}: {framework} has a square one.")
    config = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": said.embed_dim,
        "num_hidden_layers": said.depth,
        "num_attention_heads": said.num_heads,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": said.norm_eps,
        "image_size": height,
        "patch_size": said.patch_size,
        "num_channels": said.in_chans,
        "qkv_bias": True,
    }
    if kind != "dinov2":
        return {**config, "intermediate_size": hidden}
    if said.mlp_ratio != int(said.mlp_ratio):
        raise UserError(f"mlp_ratio is {said.mlp_ratio:g}: {framework} has a whole one. Take huggingface_vit.")
    return {**config, "mlp_ratio": int(said.mlp_ratio), "use_swiglu_ffn": False, "layerscale_value": 1.0}


def options_of(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Options of the encoder that a ``config.json`` of transformers says and its tensors do not show.

    Args:
        config: of any library; one that is not of transformers says nothing.
        source: of it, for messages.

    Raises:
        UserError: for another kind of model, or an activation that this encoder does not have.
    """
    kind = config.get("model_type")
    if kind is None:
        return {}
    if kind not in _READ:
        raise UserError(f"{source}: model_type is {kind!r}, expected one of {', '.join(_READ)}.")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{source}: hidden_act is {config['hidden_act']!r}: this encoder has gelu.")
    usual = 1e-6 if kind == "dinov2" else 1e-12
    heads, eps = config.get("num_attention_heads", 12), config.get("layer_norm_eps", usual)
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise UserError(f"{source}: num_attention_heads is {heads!r}, expected a positive integer.")
    if isinstance(eps, bool) or not isinstance(eps, float) or not 0 < eps < 0.5:
        raise UserError(f"{source}: layer_norm_eps is {eps!r}, expected a small positive number.")
    return {"num_heads": heads, "norm_eps": eps}
