"""The specification that a run writes into its checkpoints and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from adpe.data.views.multicrop import first_group
from adpe.engine.hooks.recording import config_sha256
from adpe.engine.settings.start import normalisation
from adpe.engine.unwrapped import unwrapped
from adpe.files import ROOT
from adpe.methods.base import PretrainingMethod
from adpe.models.specification import ModelSpecification, specification_of
from adpe.models.vit import VisionTransformer


def encoder_in(model: nn.Module) -> VisionTransformer | None:
    """The encoder that a pretraining exports, or that a classifier, segmentor or detector has; None if not ours."""
    inner = getattr(model, "model", None)
    found = inner.exported() if isinstance(inner, PretrainingMethod) else getattr(model, "backbone", None)
    return found if isinstance(found, VisionTransformer) else None


def specification_of_run(runner: Any) -> ModelSpecification | None:
    """What the checkpoints of a run say of their encoder; None if its model holds none of ours."""
    cfg, model = runner.cfg, unwrapped(runner.model)
    encoder = encoder_in(model)
    if encoder is None:
        return None
    found = {name: tuple(part / white for part in values) for name, (_, values, white) in normalisation(cfg).items()}
    inner = getattr(model, "model", None)
    if isinstance(inner, PretrainingMethod) and inner.own_normalisation:
        found = dict(zip(("mean", "std"), inner.own_normalisation, strict=True))
    elif isinstance(inner, PretrainingMethod) and inner.unit_pixels:
        found = {"mean": (0.0,) * len(found["mean"]), "std": (1.0,) * len(found["std"])} if found else {}
    found = {name: values for name, values in found.items() if len(values) == encoder.patch_embed.proj.in_channels}
    record = cfg.get("record") or {}
    title = inner.title if isinstance(inner, PretrainingMethod) else ""
    method = str(record.get("method") or title)
    by_epoch = bool((cfg.get("train_cfg") or {}).get("by_epoch"))
    accumulated = max(int((cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)), 1)
    return specification_of(
        encoder,
        _pretraining_size(cfg, model),
        **found,
        method=method if method.isprintable() and 0 < len(method) <= 1024 else None,
        recipe=_recipe(cfg.filename),
        seed=runner.seed,
        config_sha256=record.get("config_sha256") or config_sha256(cfg),
        epochs=runner.iter // max(len(runner.train_dataloader), 1) if by_epoch else None,
        iterations=runner.iter // accumulated,
    )


def _pretraining_size(cfg: Any, model: nn.Module) -> tuple[int, int] | None:
    """Pixels of the crops that a pretraining model was given; None for one that was pretrained in another run."""
    seen = getattr(model, "crop_size", None)
    if seen is not None:
        return (int(seen[0]), int(seen[1]))
    dataset = (cfg.get("train_dataloader") or {}).get("dataset") or {}
    crops = first_group((dataset.get("dataset") or dataset).get("crops"))
    return (crops["size"],) * 2 if isinstance(crops.get("size"), int) else None


def _recipe(filename: Any) -> str | None:
    if not filename:
        return None
    path = Path(filename).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
