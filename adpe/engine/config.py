"""Reading a config and finding the user's mistakes in it before anything is built."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from adpe.errors import UserError, require
from adpe.files import ROOT

# Top-level keys that a config may leave out and --cfg-options may set.
_TOP_LEVEL = {
    *inspect.signature(Runner.__init__).parameters,
    "activation_checkpointing", "compile", "custom_imports", "effective_batch", "find_unused_parameters",
    "model_wrapper_cfg", "record", "record_file", "seed",
}  # fmt: skip
# Modules that configs of earlier versions import, to where they are now.
_MOVED = {"adpe.engine.detection_heads": "adpe.transfer.detection_heads"}
_SCOPE_PACKAGES = {"mmseg": ("mmcv", "mmseg"), "mmdet": ("mmcv", "mmdet"), "mmpretrain": ("mmcv", "mmpretrain")}


def find_config(path: str | Path) -> Path:
    """The file of a config by its path, or by its name below configs/: ``pretrain/cifar10_mae``."""
    path = Path(path)
    named = ROOT / "configs" / path
    candidates = (path, ROOT / path, named, named.with_name(f"{named.name}.py"))
    return next((file for file in candidates if file.is_file()), path)


def read_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config, with `options` of the command line put in, and import what it asks for.

    An option that names a variable at the top level of the config or of its bases takes effect where the variable is
    assigned: everything computed from it follows. Other options replace values in the finished config.

    Args:
        path: a Python config. Reading it executes it.
        options: dotted keys and their values, e.g. ``{"train_cfg.max_iters": 100}``.

    Raises:
        UserError: if the file, a base, a key or a required package is missing, or the file is not valid.
    """
    path = find_config(path)
    if not path.is_file():
        root = ROOT / "configs"
        known = [str(file.relative_to(root.parent)) for file in root.rglob("*.py") if "_base_" not in file.parts]
        names = {Path(name).stem: name for name in known}
        near = difflib.get_close_matches(str(path), known, 3, 0.5)
        near += [names[stem] for stem in difflib.get_close_matches(path.stem, names, 3) if names[stem] not in near]
        raise UserError(f"config {path} does not exist. " + _list("Did you mean", near or sorted(known)[:5]))
    options = dict(options or {})
    with tempfile.TemporaryDirectory() as folder:
        text, variables = _assign(path.resolve(), options, Path(folder))
        try:
            cfg = Config.fromfile(text, import_custom_modules=False)
        except Exception as error:  # a config is a program, which can fail in any way
            reason = str(error).replace(str(text), str(path)).strip().splitlines() or [""]
            raise UserError(f"config {path} cannot be read: {type(error).__name__}: {reason[-1]}") from None
    object.__setattr__(cfg, "_filename", str(path))
    rest = {name: value for name, value in options.items() if name not in variables}
    for name in rest:
        _check_option(cfg.to_dict(), name)
    try:
        cfg.merge_from_dict(rest)
    except (KeyError, TypeError) as error:
        raise UserError(f"--cfg-options: {error}") from None
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
    return cfg


def _assign(path: Path, options: dict[str, Any], folder: Path) -> tuple[Path, set[str]]:
    """Give top-level variables of a config and its bases the values of `options`.

    Returns:
        the file to read (a changed copy in `folder`, or `path`) and the options that it took.
    """
    try:
        source = path.read_text()
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"config {path}{where} is not valid Python: {error}") from None
    taken: set[str] = set()
    changed = False
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if name == "_base_":
            bases = ast.literal_eval(node.value)
            files = []
            for base in [bases] if isinstance(bases, str) else bases:
                if "::" in base:
                    files.append(base)
                    continue
                file = (path.parent / base).resolve()
                if not file.is_file():
                    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], 3, 0.7)
                    raise UserError(f"config {path}: base {base} does not exist. " + _list("Did you mean", near))
                copy, took = _assign(file, options, folder)
                taken |= took
                changed |= bool(took)
                files.append(str(copy))
            node.value = ast.copy_location(ast.parse(repr(files), mode="eval").body, node.value)
        elif name in options and not isinstance(options[name], dict):
            node.value = ast.copy_location(ast.parse(repr(options[name]), mode="eval").body, node.value)
            taken.add(name)
            changed = True
    if not changed:
        return path, taken
    copy = Path(tempfile.mkdtemp(dir=folder)) / path.name
    copy.write_text(ast.unparse(tree))
    return copy, taken


def _check_option(cfg: dict[str, Any], option: str) -> None:
    """Raise UserError if a dotted key leads nowhere."""
    node: Any = cfg
    keys = option.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, (list, tuple)):
            if not key.isdigit() or int(key) >= len(node):
                raise UserError(f"--cfg-options {option}: {key} is not one of 0..{len(node) - 1}.")
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            siblings = list(node) if isinstance(node, dict) else []
            known = {*siblings, *_TOP_LEVEL} if depth == 0 else siblings
            near = difflib.get_close_matches(key, known, 3, 0.7)
            # A new argument of a known component is allowed; the component refuses one it does not have.
            if isinstance(node, dict) and last and (key in _TOP_LEVEL if depth == 0 else not near):
                return
            raise UserError(
                f"--cfg-options {option}: the config has no {'.'.join(keys[: depth + 1])}. "
                + _list("Did you mean", near or sorted(siblings)[:8])
            )


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
            for key, dataset in _dicts(cfg[loader].get("dataset"), f"{loader}.dataset"):
                _check_dataset(key, dataset)
    for key, node in _dicts(cfg.get("model"), "model"):
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


def _dicts(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All dicts inside `node`, with their dotted keys."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from _dicts(value, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _dicts(value, f"{key}.{index}")


def mistake_in_config(error: Exception) -> UserError | None:
    """The sentence for an error that mmengine's registry raised while building what a config names, else None."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or f"mmengine{os.sep}registry" not in frame.tb_frame.f_code.co_filename:
        return None
    message = str(error.args[0]) if error.args else str(error)
    match = re.search(r"(\S+) is not in the (?:(\w+)::)?([\w ]+?) registry", message)
    if match is None:
        if isinstance(error, (KeyError, TypeError, ImportError)):
            built = frame.tb_frame.f_locals.get("obj_cls")
            return UserError(f"the config does not fit {getattr(built, '__name__', 'its components')}: {message}")
        return None
    registry = frame.tb_frame.f_locals.get("registry")
    known: list[str] = []
    while registry is not None:
        known += list(registry.module_dict)
        registry = registry.parent
    near = difflib.get_close_matches(match[1], known, 3, 0.7)
    scope = DefaultScope.get_current_instance()
    return UserError(
        f"the config names {match[1]}, which is not a registered {match[3]} (default_scope "
        f"{scope.scope_name if scope else 'mmengine'}). "
        + (_list("Did you mean", near) if near else "Is the module that defines it in custom_imports?")
    )


def _list(words: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"{words}: {', '.join(names)}?" if names else ""
