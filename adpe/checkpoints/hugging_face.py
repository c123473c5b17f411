"""Names of Hugging Face's transformers (ViT, DeiT, ViTMAE, DINOv2) as timm's, and its three projections as one."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# In this order.
TO_TIMM = [
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^decoder\.(?=decoder_|mask_token$)", ""),  # ViTMAE's
    (r"^decoder_layers\.", "decoder_blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),  # SwiGLU
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]
_FIRST_BLOCK = re.compile(r"(.*?)encoder\.layer\.0\.attention\.attention\.query\.weight")


def from_hugging_face(raw: Mapping[str, Tensor], dropped: dict[str, str]) -> dict[str, Tensor]:
    """Tensors by timm's names; as they are if they are not by the names of transformers.

    Args:
        raw: name to tensor, without the prefixes of wrappers. A model with a head has its encoder under a name of its
            own (``vit.``, ``dinov2.``).
        dropped: takes name to reason of what is left out.
    """
    root = next((match[1] for match in map(_FIRST_BLOCK.fullmatch, raw) if match), None)
    if root is None:
        return dict(raw)
    tensors: dict[str, Tensor] = {}
    for full, tensor in raw.items():
        name = full.removeprefix(root)
        if name.startswith("pooler."):
            dropped[full] = "pooler, which comes after the encoder"
            continue
        for pattern, replacement in TO_TIMM:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    for name in [name for name in tensors if re.search(r"\.attn\.query\.(weight|bias)$", name)]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in tensors for part in parts):
            tensors[name.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    return tensors
