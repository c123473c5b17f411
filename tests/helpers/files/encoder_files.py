"""Files of small random encoders in the names that other libraries give theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoint_cases
import torch

from adpe.checkpoints.loading import save_checkpoint
from adpe.checkpoints.names import from_our_names

# The library, and what its encoders have beside the sizes.
LIBRARIES: dict[str, dict[str, Any]] = {
    "timm": {"learned_pos_embed": True},
    "mae": {},
    "huggingface_vit": {"learned_pos_embed": True, "norm_eps": 1e-12},
    "huggingface_vitmae": {"norm_eps": 1e-12},
    "huggingface_dinov2": {"learned_pos_embed": True, "init_values": 1e-5},
    "dinov2": {"learned_pos_embed": True, "init_values": 1e-5},
}


def encoder_file(folder: Path, library: str = "timm", patch: int = 14, **options: Any) -> Path:
    """4 blocks x 128 on 4 x 4 patches, in the names of a library, without a specification: the path."""
    size = {"img_size": 4 * patch, "patch_size": patch, "embed_dim": 128, "depth": 4}
    encoder = checkpoint_cases.encoder(**{**size, **LIBRARIES[library], **options})
    if library == "dinov2":  # timm's names with the blocks in one chunk, and a mask token
        named = {name.replace("blocks.", "blocks.0."): tensor for name, tensor in encoder.state_dict().items()}
        named["mask_token"] = torch.zeros(1, 128)
    else:
        named, _ = from_our_names({f"encoder.{name}": one for name, one in encoder.state_dict().items()}, library)
    file = folder / f"{library}.safetensors"
    save_checkpoint(named, file)
    return file
