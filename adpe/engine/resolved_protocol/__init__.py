"""The resolved protocol of a run, from its resolved config and its built model, optimizer and data sets.

`adpe.leaderboard.protocol` says what it is for and how two of them are compared.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from adpe.engine.config import read_config
from adpe.engine.resolved_protocol.data import data_description
from adpe.engine.resolved_protocol.description import as_json, attributes, model_description, optimizer_description
from adpe.engine.settings.precision import request_precision, settle_precision
from adpe.engine.settings.start import ENCODERS
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.evaluations.base import Evaluation, build_evaluation
from adpe.evaluations.metrics.accuracy import classification_protocol
from adpe.leaderboard.protocol import FREE_HOOKS, FREE_TOP, SWEPT, VERSION, changes, fingerprint
from adpe.models.vit import VisionTransformer

# How the metrics of ``tools/test.py --tta`` are taken (mIoU_ms), which are of the same run.
TTA = ("tta_model", "tta_pipeline")
_DATA = {"train": "train_dataloader", "val": "val_dataloader"}
# What an evaluation on frozen features reads of a config.
_EVALUATED = ("model", "evaluation", *_DATA.values())


def resolve(path: str | Path, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The protocol that a training of the config would have; its objects are built for it.

    Args:
        path: of the config.
        options: as of ``--cfg-options``. ``record.own`` names those that are the method's own.

    Returns:
        `protocol`, its `fingerprint`, the `task_fingerprint` of it without what is the method's own, and `own`, as
        records have them. Data that are not there are None in the protocol.

    Raises:
        UserError: what reading and building the config raise.
    """
    options = dict(options or {})
    cfg, own = _described(path, options, settle_precision)
    with aside():
        own["data"] = {name: data_description(dataset) for name, dataset in _datasets(cfg).items()}
    return compared(own, task_protocol(path, options))


def protocol_without_data(path: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """As `resolve` describes it, of a config whose data need not be there.

    Raises:
        UserError: what reading and building the config raise.
    """
    return _described(path, options)[1]


def task_protocol(path: str | Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """The protocol without what is the method's own, without data; None if that is no other config, or none at all.

    The method's own are the options that ``record.own`` names, and whatever comes with the file ``pretrained``.
    """
    own = _names(options.get("record.own"))
    if not own and not options.get("pretrained"):
        return None
    kept = {name: value for name, value in options.items() if name not in (*own, "pretrained")}
    try:
        return _described(path, kept)[1]
    except UserError:
        return None  # a config that needs its checkpoint, or the method's options, is a protocol of its own


def _described(
    path: str | Path, options: dict[str, Any], settle: Callable[[Config], Any] = lambda cfg: None
) -> tuple[Config, dict[str, Any]]:
    """The config and its protocol; `settle` decides what a run decides on its machine."""
    cfg = read_config(path, options)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    if cfg.get("evaluation"):
        with aside():
            model = MODELS.build(_copy(cfg.model))
        return cfg, describe_evaluation(cfg, model, build_evaluation(cfg.evaluation), swept_paths(path, options, cfg))
    request_precision(cfg)
    settle(cfg)
    with aside():
        model = MODELS.build(_copy(cfg.model))
        optim_wrapper = build_optim_wrapper(model, _copy(cfg.optim_wrapper))
        return cfg, describe(cfg, model, optim_wrapper, swept_paths(path, options, cfg))


def compared(own: dict[str, Any], task: dict[str, Any] | None) -> dict[str, Any]:
    """What a record says of its protocol `own`, beside that of its task (without data, which are the same)."""
    whole = own if task is None else {**_in_precision_of(own, task), "data": own["data"]}
    found = changes(own, whole)
    return {
        "protocol": own,
        "fingerprint": fingerprint(own),
        "task_fingerprint": fingerprint(whole),
        "own": {"changes": [list(change) for change in found]} if found else None,
    }


def _pooling(model: Any, blocks: str | None) -> str | None:
    """How one vector an image comes about, where the model has one; `blocks` is the config's option."""
    pooling = getattr(model, "global_pool", None)
    if blocks not in (None, "last"):
        pooling = f"{pooling} of {blocks} blocks"
    return pooling if getattr(model, "final_norm", True) else f"{pooling}, before the final norm"


def _in_precision_of(own: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """The protocol of a task in the precision of the run, which ``--amp`` or the machine decides and no method."""
    config, optimizer = task["config"], task["optimizer"]
    if "optim_wrapper" not in config:
        return task
    wrapper = {**config["optim_wrapper"], "type": own["config"]["optim_wrapper"]["type"]}
    config = {**config, "optim_wrapper": wrapper}
    if "wrapper" in optimizer and "wrapper" in own["optimizer"]:
        optimizer = {**optimizer, "wrapper": own["optimizer"]["wrapper"]}
    return {**task, "config": config, "optimizer": optimizer}


def swept_paths(path: str | Path, options: Mapping[str, Any], cfg: Config) -> list[str]:
    """Paths of the config that follow from the variables that ``record.sweep`` names (``"lr 0.0001"``)."""
    words = str((cfg.get("record") or {}).get("sweep") or "").split()
    paths: list[str] = []
    for name, text in zip(words[::2], words[1::2], strict=False):
        try:
            value = float(text)
        except ValueError:
            continue
        other = read_config(path, {**options, name: 2 * value})
        now = read_config(path, {**options, name: value})
        paths += [change.path for change in changes(_resolved(now), _resolved(other))]
    return paths


def describe(cfg: Config, model: nn.Module, optim_wrapper: Any, swept: Iterable[str] = ()) -> dict[str, Any]:
    """The protocol but for the data.

    Args:
        cfg: the config as it was read, before it was fitted to processes and device.
        model: as it is built and initialised.
        optim_wrapper: mmengine's, built.
        swept: paths in the config that a sweep sets.
    """
    config = _resolved(cfg)
    for path in swept:
        _replace(config, path.split("."))
    # As it was settled: --amp and precision="auto" decide after the config is read.
    config["optim_wrapper"]["type"] = type(optim_wrapper).__name__
    config["optim_wrapper"].pop("dtype", None)
    built = model_description(unwrapped(model))
    _leave_to_built(config.get("model") or {}, built)
    return {
        "version": VERSION,
        "facts": _facts(cfg),
        "config": config,
        "model": built,
        "optimizer": optimizer_description(optim_wrapper),
    }


def describe_evaluation(
    cfg: Config, model: nn.Module, evaluation: Evaluation, swept: Iterable[str] = ()
) -> dict[str, Any]:
    """The protocol of an evaluation on frozen features, but for the data; arguments as of `describe`."""
    config = _resolved(cfg)
    # Options that the config leaves out have their defaults in the built object.
    config["evaluation"] = {"type": cfg.evaluation.type, **attributes(evaluation, set())}
    for path in swept:
        _replace(config, path.split("."))
    built = model_description(unwrapped(model))
    _leave_to_built(config["model"], built)
    # The size is told by the built encoder, whether it is the config's or the checkpoint's.
    for name in ("model", "depth"):
        config["model"].pop(name, None)
    dataset = cfg.val_dataloader.dataset
    transform = dataset.get("transform") or {}
    encoder = unwrapped(model).backbone
    facts = {
        "backbone": f"ViT {len(encoder.blocks)} x {encoder.embed_dim}, patch {encoder.patch_size}",
        "head": evaluation.head,
        "crop": as_json(transform.get("input_size")),
        "crop_pct": transform.get("crop_pct"),
        "pooling": _pooling(model, cfg.model.get("blocks")),
        "split": dataset.get("split"),
        "images": [cfg[name].dataset.get("limit") for name in _DATA.values() if cfg.get(name)],
        **as_json(evaluation.facts()),
    }
    return {"version": VERSION, "facts": facts, "config": config, "model": built, "optimizer": {}}


def data_protocol(runner: Any) -> dict[str, Any]:
    """What the data sets of a runner hold."""
    found: dict[str, Any] = dict.fromkeys(_DATA)
    for name, loop in (("train", runner.train_loop), ("val", runner.val_loop)):
        if loop is not None:
            found[name] = data_description(loop.dataloader.dataset)
    return found


def _copy(node: Any) -> Any:
    return Config({"node": node.to_dict() if hasattr(node, "to_dict") else node}).node


def _datasets(cfg: Config) -> dict[str, Any]:
    """The data sets of the config, as far as their data are there."""
    found: dict[str, Any] = {}
    for name, loader in _DATA.items():
        found[name] = None
        if cfg.get(loader):
            # What the data set finds missing it says in a sentence, or mmengine in an error of the file system.
            with contextlib.suppress(UserError, OSError):
                found[name] = DATASETS.build(_copy(cfg[loader].dataset))
    return found


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Build without a trace: random generators as they were, and nothing in the log of the run that follows."""
    MMLogger.get_instance("protocol", log_level="ERROR")
    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [name for name in value.split(",") if name]
    return [str(name) for name in value or ()]


def _facts(cfg: Config) -> dict[str, Any]:
    """The few values that head a table; None where the config does not say."""
    model, test_cfg = cfg.model, cfg.model.get("test_cfg") or {}
    head = next((model[name] for name in ("decode_head", "roi_head", "bbox_head", "head") if model.get(name)), None)
    loader = (cfg.get("val_dataloader") or {}).get("dataset") or {}
    train = cfg.get("train_cfg") or {}
    backbone = model.get("backbone") or model
    split = loader.get("data_prefix") or loader.get("split")
    classification = (cfg.get("record") or {}).get("task") == "classification"
    return {
        "backbone": backbone.get("model") or backbone.get("name") or backbone.get("type"),
        # Without one of these keys the model itself is the head, as EoMT.
        "head": head.get("type") if isinstance(head, dict) else (model.get("type") if model.get("backbone") else None),
        "crop": as_json(cfg.get("crop_size") or test_cfg.get("crop_size")),
        "test": test_cfg.get("mode"),
        "stride": as_json(test_cfg.get("stride")),
        "scales": [as_json(step["scale"]) for step in loader.get("pipeline") or [] if "scale" in step],
        "iterations": train.get("max_iters"),
        "epochs": train.get("max_epochs"),
        "batch": _batch(cfg),
        "split": as_json(split),
        **(as_json(classification_protocol(cfg)) if classification else {}),
    }


def _batch(cfg: Config) -> int:
    if cfg.get("effective_batch"):
        return int(cfg.effective_batch)
    return int(cfg.train_dataloader.get("batch_size", 1)) * int(cfg.optim_wrapper.get("accumulative_counts", 1))


def _resolved(cfg: Config) -> dict[str, Any]:
    """What the Runner is given, but for what is free; how many images a step has stands among the facts."""
    content = cfg.to_dict()
    names = [name for name in (*inspect.signature(Runner.__init__).parameters, *TTA, "evaluation") if name in content]
    config = {name: as_json(content[name]) for name in names if name not in FREE_TOP}
    if "evaluation" in config:  # what belongs to training is not used
        config = {name: part for name, part in config.items() if name in _EVALUATED}
    if "default_hooks" in config:
        config["default_hooks"] = {
            name: hook for name, hook in config["default_hooks"].items() if name not in FREE_HOOKS
        }
    loader = config.get("train_dataloader")
    if isinstance(loader, dict):
        loader.pop("drop_last", None)
        loader.pop("batch_size", None)
        (config.get("optim_wrapper") or {}).pop("accumulative_counts", None)
    if isinstance(config.get("val_dataloader"), dict):
        config["val_dataloader"].pop("batch_size", None)
    return config


def _leave_to_built(model: dict[str, Any], built: dict[str, Any]) -> None:
    """Take options of the encoder out of the config that its built object tells, or that are its defaults.

    A config may leave them to the checkpoint, which fills them in: the same encoder, however it came about.
    """
    parameters = inspect.signature(VisionTransformer.__init__).parameters
    for node in (model, model.get("backbone")):
        if not isinstance(node, dict) or node.get("type") not in ENCODERS:
            continue
        told = built.get("backbone") or {}
        for name in [name for name in node if name in parameters]:
            default = as_json(parameters[name].default)
            if name in told or node[name] is None or node[name] == default:
                del node[name]


def _replace(node: Any, path: list[str]) -> None:
    """Put `SWEPT` at a path as `adpe.leaderboard.protocol.changes` writes it."""
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        kind, _, count = head.partition("#")
        matching = [i for i, item in enumerate(node) if isinstance(item, dict) and item.get("type", str(i)) == kind]
        key: Any = matching[int(count or 1) - 1]
    else:
        key = head
    if rest:
        _replace(node[key], rest)
    else:
        node[key] = SWEPT
