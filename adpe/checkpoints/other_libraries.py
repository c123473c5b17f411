"""Names of the ViTs of Hugging Face's transformers (ViT, DeiT, ViTMAE, BEiT, DINOv2) and of torchvision as timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# The weight of the patch embedding, by which an encoder is found: timm's and OpenMMLab's, transformers', torchvision's.
PATCHES = r"(?:patch_embed\.proj(?:ection)?|embeddings\.patch_embeddings\.projection|conv_proj)\.weight"

_TRANSFORMERS = [
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^decoder\.(?=decoder_|mask_token$)", ""),  # ViTMAE's
    (r"^decoder_layers\.", "decoder_blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(?:relative_position_bias\.)?", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
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


def _join_projections(tensors: dict[str, Tensor]) -> None:
    """One matrix and one bias for query, key and value, of which BEiT's key has no bias."""
    for name in [name for name in tensors if re.search(r"\.attn\.query\.(weight|bias)$", name)]:
        query, key, value = (name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
        if value not in tensors or (name.endswith("weight") and key not in tensors):
            continue
        first = tensors.pop(query)
        parts = [first, tensors.pop(key, torch.zeros_like(first)), tensors.pop(value)]
        tensors[name.replace(".query.", ".qkv.")] = torch.cat(parts)
