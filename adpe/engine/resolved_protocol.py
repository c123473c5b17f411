"""The resolved protocol of a run, from its resolved config and its built model, optimizer and data sets.

`adpe.leaderboard.protocol` says what it is for and how two of them are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import random
import re
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
from adpe.engine.precision import request_precision, settle_precision
from adpe.engine.unwrapped import unwrapped
from adpe.errors import UserError
from adpe.evaluations.accuracy import classification_protocol
from adpe.leaderboard.protocol import FREE, FREE_HOOKS, FREE_TOP, SWEPT, VERSION, changes, fingerprint

_SAMPLE = 64  # images whose contents are hashed, evenly spaced
_SMALL = 32  # elements of a tensor whose values are part of the protocol
_DEEP = 8
# How torch executes a step of an optimizer.
_EXECUTION = ("lr", "weight_decay", "differentiable", "foreach", "fused", "capturable", "decoupled_weight_decay")
_DATA = {"train": "train_dataloader", "val": "val_dataloader"}
# What a process holds of a batch, and how BatchNorm is shared, follow from the number of processes.
# Attributes that tell how far an object is or how it is distributed.
_STATE = ("training", "is_init", "process_group")
# What a data set read: its number, names and contents stand in their own places.
_CONTENT = ("data_list", "data_bytes", "data_address", "data_prefix", "images", "chosen", "coco", "cat_img_map")
_BARE = ("ModuleList", "Sequential", "ModuleDict")
_SAME = dict.fromkeys(("SyncBatchNorm", "BatchNorm2d", "_BatchNormXd", "SyncBN", "MMSyncBN", "BN"), "BatchNorm")


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
    with _aside():
        own["data"] = {name: _data(dataset) for name, dataset in _datasets(cfg).items()}
    return compared(own, task_protocol(path, options))


def protocol_without_data(path: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """As `resolve` describes it, of a config whose data need not be there.

    Raises:
        UserError: what reading and building the config raise.
    """
    return _described(path, options)[1]


def task_protocol(path: str | Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """The protocol without what is the method's own, without data; None if that is no other config.

    The method's own are the options that ``record.own`` names, and whatever comes with the file ``pretrained``.
    """
    own = _names(options.get("record.own"))
    if not own and not options.get("pretrained"):
        return None
    return _described(path, {name: value for name, value in options.items() if name not in (*own, "pretrained")})[1]


def _described(
    path: str | Path, options: dict[str, Any], settle: Callable[[Config], Any] = lambda cfg: None
) -> tuple[Config, dict[str, Any]]:
    """The config and its protocol; `settle` decides what a run decides on its machine."""
    cfg = read_config(path, options)
    request_precision(cfg)
    settle(cfg)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with _aside():
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


def _in_precision_of(own: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """The protocol of a task in the precision of the run, which ``--amp`` or the machine decides and no method."""
    config, optimizer = task["config"], task["optimizer"]
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
    return {
        "version": VERSION,
        "facts": _facts(cfg),
        "config": config,
        "model": _model(unwrapped(model)),
        "optimizer": _optimizers(optim_wrapper),
    }


def data_protocol(runner: Any) -> dict[str, Any]:
    """What the data sets of a runner hold."""
    found: dict[str, Any] = dict.fromkeys(_DATA)
    for name, loop in (("train", runner.train_loop), ("val", runner.val_loop)):
        if loop is not None:
            found[name] = _data(loop.dataloader.dataset)
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
def _aside() -> Iterator[None]:
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
        "head": head.get("type") if isinstance(head, dict) else None,
        "crop": _value(cfg.get("crop_size") or test_cfg.get("crop_size")),
        "test": test_cfg.get("mode"),
        "stride": _value(test_cfg.get("stride")),
        "scales": [_value(step["scale"]) for step in loader.get("pipeline") or [] if "scale" in step],
        "iterations": train.get("max_iters"),
        "epochs": train.get("max_epochs"),
        "batch": _batch(cfg),
        "split": _value(split),
        **(_value(classification_protocol(cfg)) if classification else {}),
    }


def _batch(cfg: Config) -> int:
    if cfg.get("effective_batch"):
        return int(cfg.effective_batch)
    return int(cfg.train_dataloader.get("batch_size", 1)) * int(cfg.optim_wrapper.get("accumulative_counts", 1))


def _resolved(cfg: Config) -> dict[str, Any]:
    """What the Runner is given, but for what is free, with the images of a step in the place of a process's."""
    content = cfg.to_dict()
    names = [name for name in inspect.signature(Runner.__init__).parameters if name in content]
    config = {name: _value(content[name]) for name in names if name not in FREE_TOP}
    if "default_hooks" in config:
        config["default_hooks"] = {
            name: hook for name, hook in config["default_hooks"].items() if name not in FREE_HOOKS
        }
    loader = config.get("train_dataloader")
    if isinstance(loader, dict):
        loader.pop("drop_last", None)
        loader["batch_size"] = _batch(cfg)
        (config.get("optim_wrapper") or {}).pop("accumulative_counts", None)
    if isinstance(config.get("val_dataloader"), dict):
        config["val_dataloader"].pop("batch_size", None)
    return config


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


def _model(model: nn.Module) -> dict[str, Any]:
    """By pattern of names (``backbone.blocks.*.attn``): class, plain attributes, parameters; numbered where unequal."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        own: dict[str, Any] = {"class": _SAME.get(kind, kind)}
        own |= _attributes(module, {id(model)})
        for key, parameter in module.named_parameters(recurse=False):
            own[key] = [*parameter.shape, "trained" if parameter.requires_grad else "frozen"]
        for key, buffer in module.named_buffers(recurse=False):
            own[key] = [*buffer.shape, "buffer"]
        found.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", name) or "whole", []).append(own)
    merged: dict[str, Any] = {}
    for pattern, members in found.items():
        keys = dict.fromkeys(key for member in members for key in member)
        own = {key: _merged([member.get(key) for member in members]) for key in keys}
        merged[pattern] = {key: value for key, value in own.items() if value is not None}
    # Bare containers say nothing that their members do not.
    return {pattern: own for pattern, own in merged.items() if own.keys() != {"class"} or own["class"] not in _BARE}


def _merged(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else {str(i): v for i, v in enumerate(values)}


def _attributes(thing: Any, seen: set[int], depth: int = 0) -> dict[str, Any]:
    own = {}
    for name, value in vars(thing).items():
        if name.startswith("_") or name in _STATE or name in FREE or isinstance(value, nn.Module):
            continue
        own[name] = _value(value, seen, depth + 1)
    return own


def _value(value: Any, seen: set[int] = frozenset(), depth: int = 0) -> Any:  # type: ignore[assignment]
    """Anything as JSON: plain values, names of functions and classes, objects by class and public attributes."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return float(f"{number:.12g}") if math.isfinite(number) else str(number)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if key not in FREE or _is_initialisation(key, item)}
        built = {key: _value(item, seen, depth) for key, item in kept.items()}
        kind = built.get("type")
        return {**built, "type": _SAME[kind]} if isinstance(kind, str) and kind in _SAME else built
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_value(item, seen, depth) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        size = int(np.prod(value.shape))
        return _value(value.tolist()) if size <= _SMALL else {"shape": list(value.shape)}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, nn.Module) or inspect.isroutine(value) or inspect.isclass(value):
        return getattr(value, "__name__", type(value).__name__)
    if depth > _DEEP or id(value) in seen or not hasattr(value, "__dict__"):
        return type(value).__name__
    return {"class": type(value).__name__, **_attributes(value, {*seen, id(value)}, depth)}


def _is_initialisation(key: Any, value: Any) -> bool:
    """How a head is initialised; the file that an encoder starts from is free."""
    return key == "init_cfg" and bool(value) and not (isinstance(value, Mapping) and value.get("type") == "Pretrained")


def _optimizers(wrapper: Any) -> dict[str, Any]:
    """Class and options of every optimizer, with its groups' rates and decays as shares of the config's."""
    if not hasattr(wrapper, "optimizer"):
        return {str(name): _optimizers(part) for name, part in wrapper.items()} if hasattr(wrapper, "items") else {}
    optimizer = wrapper.optimizer
    defaults = {name: _value(value) for name, value in optimizer.defaults.items()}
    groups: dict[str, int] = {}
    for group in optimizer.param_groups:
        rest = {k: _value(v) for k, v in group.items() if k not in ("params", "lr", "initial_lr", "weight_decay")}
        rest = {k: v for k, v in rest.items() if not k.endswith(("name", "names")) and v != defaults.get(k)}
        rest["lr"] = _share(group.get("initial_lr", group["lr"]), optimizer.defaults.get("lr"))
        rest["weight_decay"] = _share(group.get("weight_decay"), optimizer.defaults.get("weight_decay"))
        key = json.dumps(rest, sort_keys=True)
        groups[key] = groups.get(key, 0) + len(group["params"])
    options = {name: value for name, value in defaults.items() if name not in _EXECUTION}
    return {
        "class": type(optimizer).__name__,
        "wrapper": type(wrapper).__name__,
        "options": options,
        "groups": [{**json.loads(key), "tensors": count} for key, count in sorted(groups.items())],
    }


def _share(value: Any, of: Any) -> Any:
    return _value(value / of) if isinstance(value, (int, float)) and of else _value(value)


def _data(dataset: Any) -> dict[str, Any] | None:
    """Number of images, hashes of their names with labels and of the contents of a sample, and the transforms."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if dataset is None:
        return None
    names, contents = hashlib.sha256(), hashlib.sha256()
    count = len(dataset)
    sampled = {index * count // _SAMPLE for index in range(_SAMPLE)} if count > _SAMPLE else set(range(count))
    for index in range(count):
        item = _item(dataset, index)
        names.update(json.dumps(_named(item), sort_keys=True).encode())
        if index in sampled:
            annotations = {key: value for key, value in item.items() if "path" not in str(key)}
            contents.update(json.dumps(_value(annotations), sort_keys=True, default=str).encode())
            for content in _files(dataset, index, item):
                contents.update(content)
    built = {name: value for name, value in _attributes(dataset, {id(dataset)}).items() if name not in _CONTENT}
    return {
        "images": count,
        "names": names.hexdigest()[:16],
        "contents": contents.hexdigest()[:16],
        "classes": len((getattr(dataset, "metainfo", None) or {}).get("classes") or ()),
        "built": {"class": type(dataset).__name__, **built},
    }


def _item(dataset: Any, index: int) -> dict[str, Any]:
    """What the data set knows of an item without reading its image."""
    if hasattr(dataset, "get_data_info"):
        info = dataset.get_data_info(index)
        return info if isinstance(info, dict) else {}
    if hasattr(dataset, "images"):
        at = int(dataset.chosen[index]) if hasattr(dataset, "chosen") else index
        return {"img_path": dataset.images.path(at), "label": dataset.images.label(at)}
    return {}


def _named(item: Mapping[str, Any]) -> list[Any]:
    """The name of an item, as machines agree on it the last two parts of its paths, its label and number of objects."""
    paths = [value for key, value in item.items() if "path" in str(key) and isinstance(value, (str, Path))]
    names = ["/".join(Path(path).parts[-2:]) for path in paths]
    return [names, item.get("label"), len(item.get("instances") or ())]


def _files(dataset: Any, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    images = getattr(dataset, "images", None)
    if images is not None and hasattr(images, "read"):
        with contextlib.suppress(UserError):  # a damaged image is left out of the training too, and reported there
            yield images.read(int(dataset.chosen[index]) if hasattr(dataset, "chosen") else index)
        return
    for key, value in item.items():
        if "path" in key and isinstance(value, (str, Path)):
            with contextlib.suppress(OSError):
                yield Path(value).read_bytes()
