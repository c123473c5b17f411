"""Built objects as JSON: the model by patterns of names, optimizers by shares of the config's rates."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adpe.leaderboard.protocol import FREE

_SMALL = 32  # elements of a tensor whose values are part of the protocol
_DEEP = 8
# Attributes that tell how far an object is or how it is distributed.
_STATE = ("training", "is_init", "process_group")
_BARE = ("ModuleList", "Sequential", "ModuleDict")
# How BatchNorm is shared follows from the number of processes.
_SAME = dict.fromkeys(("SyncBatchNorm", "BatchNorm2d", "_BatchNormXd", "SyncBN", "MMSyncBN", "BN"), "BatchNorm")
# How torch executes a step of an optimizer.
_EXECUTION = ("lr", "weight_decay", "differentiable", "foreach", "fused", "capturable", "decoupled_weight_decay")


def model_description(model: nn.Module) -> dict[str, Any]:
    """By pattern of names (``backbone.blocks.*.attn``): class, plain attributes, parameters; numbered where unequal."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        own: dict[str, Any] = {"class": _SAME.get(kind, kind)}
        own |= attributes(module, {id(model)})
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


def attributes(thing: Any, seen: set[int], depth: int = 0) -> dict[str, Any]:
    """The public attributes of an object as JSON, but for what is free; `seen` are ids of objects above it."""
    own = {}
    for name, value in vars(thing).items():
        if name.startswith("_") or name in _STATE or name in FREE or isinstance(value, nn.Module):
            continue
        own[name] = as_json(value, seen, depth + 1)
    return own


def as_json(value: Any, seen: set[int] = frozenset(), depth: int = 0) -> Any:  # type: ignore[assignment]
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
        built = {key: as_json(item, seen, depth) for key, item in kept.items()}
        kind = built.get("type")
        return {**built, "type": _SAME[kind]} if isinstance(kind, str) and kind in _SAME else built
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [as_json(item, seen, depth) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        size = int(np.prod(value.shape))
        return as_json(value.tolist()) if size <= _SMALL else {"shape": list(value.shape)}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, nn.Module) or inspect.isroutine(value) or inspect.isclass(value):
        return getattr(value, "__name__", type(value).__name__)
    if depth > _DEEP or id(value) in seen or not hasattr(value, "__dict__"):
        return type(value).__name__
    return {"class": type(value).__name__, **attributes(value, {*seen, id(value)}, depth)}


def _is_initialisation(key: Any, value: Any) -> bool:
    """How a head is initialised; the file that an encoder starts from is free."""
    return key == "init_cfg" and bool(value) and not (isinstance(value, Mapping) and value.get("type") == "Pretrained")


def optimizer_description(wrapper: Any) -> dict[str, Any]:
    """Class and options of every optimizer, with its groups' rates and decays as shares of the config's."""
    if not hasattr(wrapper, "optimizer"):
        return (
            {str(name): optimizer_description(part) for name, part in wrapper.items()}
            if hasattr(wrapper, "items")
            else {}
        )
    optimizer = wrapper.optimizer
    defaults = {name: as_json(value) for name, value in optimizer.defaults.items()}
    groups: dict[str, int] = {}
    for group in optimizer.param_groups:
        rest = {k: as_json(v) for k, v in group.items() if k not in ("params", "lr", "initial_lr", "weight_decay")}
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
    return as_json(value / of) if isinstance(value, (int, float)) and of else as_json(value)
