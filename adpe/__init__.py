"""AdPE: masked image modelling with adversarial positional embeddings, and its transfer to dense tasks.

Importing this package needs torch alone; what needs timm, mmengine, mmsegmentation or mmdetection is imported when it
is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adpe.checkpoints.loading import load_checkpoint as load_checkpoint
    from adpe.checkpoints.loading import load_encoder as load_encoder
    from adpe.checkpoints.loading import read_checkpoint as read_checkpoint
    from adpe.checkpoints.loading import save_checkpoint as save_checkpoint
    from adpe.engine.folder.command import pretrain as pretrain
    from adpe.methods.adpe import AdPE as AdPE
    from adpe.methods.adversary import Adversary as Adversary
    from adpe.methods.base import PretrainingMethod as PretrainingMethod
    from adpe.methods.factory import create_method as create_method
    from adpe.methods.factory import create_model as create_model
    from adpe.methods.factory import masked_autoencoder as masked_autoencoder
    from adpe.methods.mae import MAE as MAE
    from adpe.methods.mae_plus import MAEPlus as MAEPlus
    from adpe.models.factory import create_encoder as create_encoder
    from adpe.models.factory import register_with_timm as register_with_timm
    from adpe.models.vit import VisionTransformer as VisionTransformer
    from adpe.sharing.hub import from_pretrained as from_pretrained
    from adpe.sharing.hub import save_pretrained as save_pretrained

_HOME = {
    "Adversary": "methods.adversary",
    "AdPE": "methods.adpe",
    "MAE": "methods.mae",
    "MAEPlus": "methods.mae_plus",
    "PretrainingMethod": "methods.base",
    "create_method": "methods.factory",
    "VisionTransformer": "models.vit",
    "create_encoder": "models.factory",
    "create_model": "methods.factory",
    "masked_autoencoder": "methods.factory",
    "load_checkpoint": "checkpoints.loading",
    "load_encoder": "checkpoints.loading",
    "pretrain": "engine.folder.command",
    "from_pretrained": "sharing.hub",
    "save_pretrained": "sharing.hub",
    "read_checkpoint": "checkpoints.loading",
    "register_with_timm": "models.factory",
    "save_checkpoint": "checkpoints.loading",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adpe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"adpe.{_HOME[name]}"), name)
