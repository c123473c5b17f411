"""Names of the ViTs of Hugging Face's transformers (ViT, DeiT, ViTMAE, BEiT, DINOv2) and of torchvision as timm's.

ViT, DINOv2 and ViTMAE are written as well, by the names that the files of transformers have in versions 4 and 5. In
memory, version 5 calls some of them otherwise, which is read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from adpe.errors import UserError

# The weight of the patch embedding, by which an encoder is found: timm's and OpenMMLab's, transformers', torchvision's.
PATCHES = r"(?:patch_embed\.proj(?:ection)?|embeddings\.patch_embeddings\.projection|conv_proj)\.weight"

_TRANSFORMERS = [
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^decoder\.(?=decoder_|mask_token$)", ""),  # ViTMAE's
    # Version 5 (5.24) saves a decoder's layers under decoder_encoder.layer.
    (r"^decoder_(?:layers|encoder\.layer)\.", "decoder_blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(?:relative_position_bias\.)?", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),  # SwiGLU
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_([12])$", r".ls\1.gamma"),  # BEiT's
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),  # BEiT's
    (r"^classifier\.", "head."),
]
_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
_TRANSFORMERS += [(rf"\.attention\.{short}\.", f".attn.{part}.") for part, short in _PARTS.items()]

_TO_DINOV2 = [
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"^norm\.", "layernorm."),
]
_TO_VIT = [
    *_TO_DINOV2,
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
# timm's names, in this order; a decoder's are those of MAE.
FROM_TIMM = {
    "huggingface_vit": _TO_VIT,
    "huggingface_dinov2": _TO_DINOV2,
    "huggingface_vitmae": [
        (r"^mask_token$", "decoder.mask_token"),
        (r"^decoder_blocks\.", "decoder.decoder_layers."),
        (r"^decoder_", "decoder.decoder_"),
        *_TO_VIT,
        (r"^(?!decoder\.)", "vit."),
    ],
}
_TORCHVISION = [
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
]


def from_other_libraries(raw: Mapping[str, Tensor], dropped: dict[str, str]) -> dict[str, Tensor]:
    """Tensors by timm's names; as they are if they are not by the names of transformers or torchvision.

    Args:
        raw: name to tensor, without what stands before the names of an encoder.
        dropped: takes name to reason of what is left out.
    """
    if any(name.startswith("embeddings.patch_embeddings.") for name in raw):
        renames = _TRANSFORMERS
    elif "class_token" in raw and "conv_proj.weight" in raw:
        renames = _TORCHVISION
    else:
        return dict(raw)
    tensors: dict[str, Tensor] = {}
    for full, tensor in raw.items():
        if full.startswith("pooler.dense."):
            dropped[full] = "pooler, which comes after the encoder"
            continue
        name = full
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    _join_projections(tensors)
    return tensors


def for_transformers(tensors: dict[str, Tensor], framework: str, source: str) -> None:
    """Make an encoder by timm's names what a model of transformers has, which computes the same; changed in place.

    LayerScale of ones is added for DINOv2, with the mask token of zeros that its pretraining starts from, and left out
    for the others. Query, key and value are taken apart.

    Args:
        tensors: of an encoder with positions, and for ViTMAE of a decoder by MAE's names.
        framework: a key of `FROM_TIMM`.
        source: what error messages call it.

    Raises:
        UserError: for a part that the target does not have; it names the tensor.
    """
    scales = [name for name in tensors if re.search(r"\.ls[12]\.gamma$", name)]
    if framework != "huggingface_dinov2":
        for name in scales:
            if not bool((tensors.pop(name) == 1).all()):
                raise UserError(
                    f"{source} has LayerScale ({name}), which {framework} has not: --to huggingface_dinov2."
                )
    for name in ("norm.weight", "cls_token"):
        if name not in tensors or (name == "cls_token" and tensors[name].shape[1] != 1):
            raise UserError(f"{source}: {framework} needs one {name}, which this encoder does not have.")
    for name in tensors:
        if name.endswith((".relative_position_bias_table", ".rel_pos_h", ".rel_pos_w")):
            raise UserError(f"{source} has {name}, which {framework} does not know: it would compute something else.")
    if framework == "huggingface_dinov2":
        width = tensors["cls_token"].shape[-1]
        tensors["mask_token"] = torch.zeros(1, width)
        for index in {name.split(".")[1] for name in tensors if name.startswith("blocks.")}:
            for branch in (1, 2):
                tensors.setdefault(f"blocks.{index}.ls{branch}.gamma", torch.ones(width))
    for name in [name for name in tensors if ".attn.qkv." in name]:
        for part, third in zip(_PARTS, tensors.pop(name).chunk(3), strict=True):
            tensors[name.replace(".qkv.", f".{part}.")] = third


def _join_projections(tensors: dict[str, Tensor]) -> None:
    """One matrix and one bias for query, key and value, of which BEiT's key has no bias."""
    for name in [name for name in tensors if re.search(r"\.attn\.query\.(weight|bias)$", name)]:
        query, key, value = (name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
        if value not in tensors or (name.endswith("weight") and key not in tensors):
            continue
        first = tensors.pop(query)
        parts = [first, tensors.pop(key, torch.zeros_like(first)), tensors.pop(value)]
        tensors[name.replace(".query.", ".qkv.")] = torch.cat(parts)
