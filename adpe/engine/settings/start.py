"""Where the encoder of a config starts, written into the config: what the checkpoint says, and the method's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD, first_group
from adpe.errors import UserError
from adpe.models.factory import encoder_options
from adpe.transfer.backbones.initialisation import described_start, options_of_start

# Models and backbones whose options are those of the encoder.
ENCODERS = ("AdPEViT", "AdPEClassifier", "AdPEFrozenEncoder")
# The transform that normalises where no data preprocessor does.
_SQUASH = "AdPESquash"
# Options of these beside the encoder's own.
_OTHERS = (
    "type", "model", "init_cfg", "out_indices", "final_norm", "out_type", "frozen_stages", "global_pool", "frozen",
    "mixup", "mixup_batch", "label_smoothing", "head_init_std", "data_preprocessor",
)  # fmt: skip


def settle_start(cfg: Config, checkpoint: str | None = None) -> None:
    """Fill in what a config leaves to the checkpoint that its encoder starts from, and ``record.method``.

    Args:
        cfg: changed in place; as it was if its encoder is initialised at random, or the file is not there.
        checkpoint: read for it instead of the one that the config names (of a run that is tested).

    Raises:
        UserError: if the config contradicts the checkpoint, naming the key and both values.
    """
    model = cfg.get("model")
    if not isinstance(model, dict):
        return
    for key, node in (("model", model), ("model.backbone", model.get("backbone"))):
        if not isinstance(node, dict) or node.get("type") not in ENCODERS:
            continue
        init_cfg = {"checkpoint": checkpoint} if checkpoint else node.get("init_cfg")
        start = described_start(init_cfg)
        if start is None:
            continue
        name = node.get("model", "adpe_vit_base_patch16")
        given = {option: value for option, value in node.items() if option not in _OTHERS}
        try:
            sizes = encoder_options(name) if name else {}
        except ValueError as error:
            raise UserError(f"{key}.model: {error}") from None
        settled = options_of_start(name, given, init_cfg, key)
        node.update({option: value for option, value in settled.items() if sizes.get(option) != value})
        if checkpoint is None:
            _settle_method(cfg, *start)
            _check_normalisation(cfg, *start)


def _settle_method(cfg: Config, path: str, described: Any) -> None:
    record = cfg.get("record")
    if not isinstance(record, dict):
        return
    said, given = described.specification.method, record.get("method")
    if given is None:
        record["method"] = said or Path(path).stem
    elif said is not None and str(given) != said:
        raise UserError(f"record.method = {given!r}, but {path} says that it is of {said!r}. Leave record.method out.")


def normalisation(cfg: Config) -> dict[str, tuple[str, list[float], float]]:
    """What a config normalises images with: ``mean`` and ``std`` to key, values, and the value of a white pixel."""
    found = {}
    preprocessor = (cfg.get("model") or {}).get("data_preprocessor") or {}
    dataset = (cfg.get("val_dataloader") or cfg.get("train_dataloader") or {}).get("dataset") or {}
    dataset = dataset.get("dataset") or dataset  # wrapped for reproducibility
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        if preprocessor.get(name) is not None:
            white = 1.0 if preprocessor.get("type") in (None, "AdPECropsPreprocessor") else 255.0
            found[name] = (f"model.data_preprocessor.{name}", list(preprocessor[name]), white)
        elif dataset.get("type") == "AdPEClassificationDataset":  # timm's transform
            values = (dataset.get("transform") or {}).get(name) or default
            found[name] = (f"val_dataloader.dataset.transform.{name}", list(values), 1.0)
        elif squash := [s for s in dataset.get("pipeline") or [] if isinstance(s, dict) and s.get("type") == _SQUASH]:
            values = squash[-1].get(name) or default
            found[name] = (f"val_dataloader.dataset.pipeline: {_SQUASH}'s {name}", list(values), 1.0)
        elif dataset.get("type") == "AdPEImageDataset":
            values = first_group(dataset.get("crops")).get(name) or default
            found[name] = (f"train_dataloader.dataset.crops.{name}", list(values), 1.0)
    return found


def _check_normalisation(cfg: Config, path: str, described: Any) -> None:
    """Raise UserError if images are not normalised as in pretraining."""
    for name, (key, given, white) in normalisation(cfg).items():
        theirs = getattr(described.specification, name)
        if theirs is None or len(theirs) != len(given):
            continue
        if any(abs(a / white - b) > 2e-3 for a, b in zip(given, theirs, strict=True)):
            expected = [round(part * white, 3) for part in theirs]
            raise UserError(f"{key} = {given}, but {path} was pretrained with {expected}: set it to that.")
