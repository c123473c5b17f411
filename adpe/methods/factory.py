"""A pretraining method around an encoder of a named size, in one call."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from adpe.methods import METHODS
from adpe.methods.base import PretrainingMethod
from adpe.methods.mae import MAE
from adpe.models.vit import VisionTransformer


def method_class(name: str) -> type[PretrainingMethod]:
    """The class of a method by its name in :data:`adpe.methods.METHODS`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"method={name!r} is unknown; there are {', '.join(METHODS)}.{hint}")
    module, _, cls = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def create_method(method: str, model: str, **options: Any) -> PretrainingMethod:
    """A pretraining method around an encoder.

    Args:
        method: name in :data:`adpe.methods.METHODS`.
        model: encoder's name, for :func:`adpe.create_encoder`.
        options: of the method, as its class documents them; the others are the encoder's.

    Raises:
        ValueError: for an unknown method or model, or options that do not go together.
        TypeError: for an option that neither has.
    """
    cls = method_class(method)
    names = _options_of(cls)
    own = {key: value for key, value in options.items() if key in names}
    return cls.build(model, {key: value for key, value in options.items() if key not in names}, **own)


def create_model(name: str, **options: Any) -> MAE:
    """Masked autoencoder around an encoder of a named size: MAE, MAE+ or AdPE, as the options say.

    Args:
        name: ``adpe_vit_{tiny,small,base,large,huge}_patch{pixels}``.
        options: ``mask_tokens="decoder"`` is MAE; an ``adversary`` is AdPE; otherwise MAE+. The rest goes to
            :class:`adpe.methods.adpe.AdPE`, :class:`adpe.methods.mae.MAE` and :class:`VisionTransformer`. The
            coordinate adversary and the random control on relative positions work on the interpolated form, which
            ``position="relative"`` then stands for.

    Raises:
        ValueError: for an unknown name, or options that do not go together.
    """
    method = autoencoder_of(options)
    return create_method(method, name, **options)  # type: ignore[return-value]


def masked_autoencoder(encoder: VisionTransformer, **options: Any) -> MAE:
    """As :func:`create_model`, around an encoder at hand."""
    return method_class(autoencoder_of(options))(encoder, **options)  # type: ignore[return-value]


def autoencoder_of(options: dict[str, Any]) -> str:
    """The method that ``mask_tokens`` and ``adversary`` stand for; keys it leaves no use for are removed.

    Raises:
        ValueError: for values that no method has.
    """
    tokens = options.pop("mask_tokens", "encoder")
    if tokens not in ("encoder", "decoder"):
        raise ValueError(f"mask_tokens must be encoder or decoder, got {tokens!r}.")
    if options.get("adversary"):
        if tokens == "decoder":
            raise ValueError("An adversary needs mask_tokens='encoder' (MAE+); MAE has none.")
        return "adpe"
    left = {key: options.pop(key) for key in list(options) if key == "adversary" or key.startswith("adversary_")}
    if (
        left.get("adversary_norm")
        or left.get("adversary_epsilon")
        or left.get("adversary_variant", "masked_keys") != ("masked_keys")
    ):
        raise ValueError("adversary_norm, _epsilon and _variant need an adversary: set adversary=.")
    return "mae" if tokens == "decoder" else "mae_plus"


def _options_of(cls: type[PretrainingMethod]) -> set[str]:
    """Names of the constructor's options, those of base classes that it hands on included."""
    names: set[str] = set()
    for base in cls.__mro__:
        if not issubclass(base, PretrainingMethod) or base is PretrainingMethod or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self", "encoder"}
