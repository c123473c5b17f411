"""AdPE: masked image modelling with adversarial positional embeddings, and its transfer to dense tasks.

Importing this package needs torch alone; what needs timm, mmengine, mmsegmentation or mmdetection is imported when it
is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adpe.adversary import Adversary as Adversary
    from adpe.checkpoint import load_checkpoint as load_checkpoint
    from adpe.checkpoint import read_checkpoint as read_checkpoint
    from adpe.checkpoint import save_checkpoint as save_checkpoint
    from adpe.mae import MaskedAutoencoder as MaskedAutoencoder
    from adpe.models import create_encoder as create_encoder
    from adpe.models import create_model as create_model
    from adpe.models import register_with_timm as register_with_timm
    from adpe.vit import VisionTransformer as VisionTransformer

_HOME = {
    "Adversary": "adversary",
    "MaskedAutoencoder": "mae",
    "VisionTransformer": "vit",
    "create_encoder": "models",
    "create_model": "models",
    "load_checkpoint": "checkpoint",
    "read_checkpoint": "checkpoint",
    "register_with_timm": "models",
    "save_checkpoint": "checkpoint",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adpe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"adpe.{_HOME[name]}"), name)
