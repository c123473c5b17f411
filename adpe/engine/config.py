"""Reading a config and finding the user's mistakes in it before anything is built."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from adpe.config_names import is_config, known_configs
from adpe.engine.mmengine_internals import failed_build
from adpe.engine.options.paths import check_option, deletions_first, places, put, suggest
from adpe.engine.options.variables import Variables, find_sources
from adpe.engine.settings.start import settle_start
from adpe.errors import UserError, require
from adpe.files import ROOT

# Top-level keys that are used by themselves: a config may leave them out, and --cfg-options may set them.
_TOP_LEVEL = {
    *inspect.signature(Runner.__init__).parameters,
    "activation_checkpointing", "compile", "custom_imports", "effective_batch", "efficient_conv_bn_eval",
    "evaluation", "find_unused_parameters", "model_wrapper_cfg", "precision", "record", "record_file", "runner_type",
    "seed", "strategy", "sync_bn", "tracker", "tta_model", "tta_pipeline",
} - {"self", "cfg"}  # fmt: skip
# Modules that configs of earlier versions import, to where they are now.
_MOVED = {
    "adpe.data.multiband_dataset": "adpe.data.multiband.dataset",
    "adpe.data.multiband_labels": "adpe.data.multiband.labels",
    "adpe.engine.detection_heads": "adpe.transfer.detection_heads",
    "adpe.evaluations.probe_transforms": "adpe.data.views.probe_transforms",
}
_SCOPE_PACKAGES = {"mmseg": ("mmcv", "mmseg"), "mmdet": ("mmcv", "mmdet"), "mmpretrain": ("mmcv", "mmpretrain")}


def find_config(path: str | Path) -> Path:
    """A config by its path, or by its name below configs/: ``pretrain/cifar10_mae``.

    It is a file, or one of the names in :mod:`adpe.config_names`.
    """
    path = Path(path)
    named = ROOT / "configs" / path
    candidates = (path, ROOT / path, named, named.with_name(f"{named.name}.py"))
    return next((file for file in candidates if is_config(file)), path)


def read_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config, with `options` of the command line put in, and import what it asks for.

    A variable at the top level that a config assigns anew over a base takes effect in the base, and an option that
    names a variable, or a value inside one, where the variable is assigned: everything computed from it follows. Other
    options replace values in the finished config. What an encoder leaves to the checkpoint that it starts from is
    filled in (:mod:`adpe.engine.settings.start`).

    Args:
        path: a config. Reading it executes it.
        options: dotted keys and their values, e.g. ``{"train_cfg.max_iters": 100, "norm_cfg.type": "BN"}``.

    Raises:
        UserError: if the file, a base, a key or a required package is missing, the file is not valid, an option or a
            variable of a config over bases changes nothing, or the encoder contradicts its checkpoint.
    """
    path = find_config(path)
    if not is_config(path):
        known = known_configs()
        names = {Path(name).stem: name for name in known}
        near = difflib.get_close_matches(str(path), known, 3, 0.5)
        near += [names[stem] for stem in difflib.get_close_matches(path.stem, names, 3) if names[stem] not in near]
        raise UserError(f"config {path} does not exist. " + suggest("Did you mean", near or known[:5]))
    options = dict(options or {})
    variables = Variables(find_sources(path.resolve()), _TOP_LEVEL)
    cfg = variables.read(options)
    values = _with_options(cfg.to_dict(), options)
    _check_effects(variables, options, values)
    # yapf would take a second for every log, dump and checkpoint.
    cfg = Config(
        values, cfg_text=cfg.text, filename=str(path), env_variables=cfg.env_variables, format_python_code=False
    )
    for package in _SCOPE_PACKAGES.get(cfg.get("default_scope", ""), ()):
        require(package, "requirements/mm.txt")
    if cfg.get("custom_imports"):
        imports = cfg.custom_imports.get("imports") or []
        modules = [imports] if isinstance(imports, str) else imports
        cfg.custom_imports["imports"] = [_MOVED.get(module, module) for module in modules]
        try:
            import_modules_from_strings(**cfg.custom_imports)
        except ImportError as error:
            # mmengine says which module failed; why is in the error it answered to.
            cause = f": {error.__context__}" if error.__context__ else ""
            raise UserError(
                f"config {path}: custom_imports: {error}{cause}. `make doctor` checks what is installed."
            ) from error
    settle_start(cfg)
    return cfg


def _with_options(cfg: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A copy of a finished config with options put in."""
    for option, value in deletions_first(options).items():
        check_option(cfg, option, _TOP_LEVEL, options)
        try:
            cfg = put(cfg, option.split("."), value)
        except KeyError as error:
            raise UserError(f"--cfg-options {option}: {error.args[0]}") from None
    return cfg


def _check_effects(variables: Variables, options: dict[str, Any], cfg: dict[str, Any]) -> None:
    """Refuse options and variables of a config over bases that change nothing but themselves.

    Args:
        variables: of the config.
        options: that were put in.
        cfg: the finished config.
    """
    # An evaluation may read further data.
    used = _TOP_LEVEL | {name for name in cfg if name.endswith("_dataloader") and "evaluation" in cfg}
    for option, value in options.items():
        name = option.partition(".")[0]
        if name in used:
            continue
        others = {key: other for key, other in options.items() if key != option}
        without = _with_options(variables.read(others).to_dict(), others)
        old = without.pop(name, None)
        same = without == {key: item for key, item in cfg.items() if key != name} and old != cfg[name]
        rest = option.partition(".")[2]
        found = [f"{key}.{rest}" if rest else key for key in places(cfg, name, old)]
        # Another key may be read by a component of the user's own.
        if same and (found or name in variables.names):
            raise UserError(
                f"--cfg-options {option}={value} would change nothing: in {variables.source.path} nothing is computed "
                f"from {name}, or what is has been given a value of its own. {_instead(found)}"
            )
    for name in variables.without_effect():
        if name in options or name in used:
            continue
        known = list(places(cfg, name, cfg.get(name)))
        near = difflib.get_close_matches(name, {*variables.names, *_TOP_LEVEL}, 3, 0.75)
        if known or near:
            raise UserError(
                f"config {variables.source.path}: {name} changes nothing: nothing is computed from it. "
                + (suggest("Did you mean", near) if near else _instead(known))
            )
        print_log(f"config {variables.source.path}: {name} changes nothing: nothing is computed from it.", level=30)


def _instead(keys: list[str]) -> str:
    return f"Set {', '.join(keys[:4])}." if keys else "Set the key that it is meant for."


def check_files(cfg: Config, loaders: Iterable[str]) -> None:
    """Make sure that the data and checkpoints named in a config are there.

    Args:
        cfg: the config.
        loaders: names of the dataloaders in use, e.g. ``["train_dataloader", "val_dataloader"]``.

    Raises:
        UserError: naming the first path that is missing and the key it comes from.
    """
    for loader in loaders:
        if cfg.get(loader):
            for key, dataset in dicts(cfg[loader].get("dataset"), f"{loader}.dataset"):
                _check_dataset(key, dataset)
    for key, node in dicts(cfg.get("model"), "model"):
        if node.get("type") == "Pretrained":
            _check_path(f"{key}.checkpoint", node.get("checkpoint"))
    _check_path("load_from", cfg.get("load_from"))


def _check_dataset(key: str, dataset: dict[str, Any]) -> None:
    sources = dataset.get("source")
    for source in sources if isinstance(sources, (list, tuple)) else [sources]:
        _check_path(f"{key}.source", source)
    root = dataset.get("data_root")
    _check_path(f"{key}.data_root", root)
    parts = {"ann_file": dataset.get("ann_file")}
    prefix = dataset.get("data_prefix")
    parts.update({f"data_prefix.{name}": value for name, value in prefix.items()} if isinstance(prefix, dict) else {})
    for name, value in parts.items():
        if isinstance(value, str) and value and isinstance(root, str):
            _check_path(f"{key}.{name}", os.path.join(root, value))


def _check_path(key: str, value: Any) -> None:
    if not isinstance(value, (str, Path)) or not str(value) or re.match(r"[\w-]+://", str(value)):
        return
    if not os.path.exists(os.path.expanduser(value)):
        parent = Path(value).absolute().parent
        while not parent.exists():
            parent = parent.parent
        raise UserError(
            f"{key} = {str(value)!r} does not exist (working directory {os.getcwd()}; the nearest folder that does is "
            f"{parent}). Set it in the config, or with --cfg-options."
        )


def dicts(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All dicts inside `node`, with their dotted keys."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from dicts(value, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from dicts(value, f"{key}.{index}")


def mistake_in_config(error: Exception) -> UserError | None:
    """The sentence for an error that mmengine's registry raised while building what a config names, else None."""
    failed = failed_build(error)
    if failed is None:
        return None
    message = str(error.args[0]) if error.args else str(error)
    match = re.search(r"(\S+) is not in the (?:(\w+)::)?([\w ]+?) registry", message)
    if match is None:
        if isinstance(error, (KeyError, TypeError, ImportError)):
            built = getattr(failed.component, "__name__", "its components")
            return UserError(f"the config does not fit {built}: {message}")
        return None
    registry = failed.registry
    known: list[str] = []
    while registry is not None:
        known += list(registry.module_dict)
        registry = registry.parent
    near = difflib.get_close_matches(match[1], known, 3, 0.7)
    scope = DefaultScope.get_current_instance()
    return UserError(
        f"the config names {match[1]}, which is not a registered {match[3]} (default_scope "
        f"{scope.scope_name if scope else 'mmengine'}). "
        + (suggest("Did you mean", near) if near else "Is the module that defines it in custom_imports?")
    )
