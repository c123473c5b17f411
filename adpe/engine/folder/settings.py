"""The settings of a pretraining on a folder: found once, kept in the work directory, and the same on every call."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from adpe.data.sources.images import ImageSource
from adpe.engine.config import find_config, read_config
from adpe.engine.folder.choice import Choice, batch_of, choose, needed_speed
from adpe.engine.folder.trial import SECONDS, Measured, run_trial
from adpe.engine.processes import lock_work_dir
from adpe.engine.settings.effective_batch import divide
from adpe.errors import UserError
from adpe.files import ROOT, atomic_write
from adpe.methods.factory import autoencoder_of, method_class
from adpe.models.factory import SIZES

FILE = "folder.json"
HOURS = 1.0
_VERSION = 1
# Encoders that are tried beside the recipe's own, if they are larger.
_TRIED = ("tiny", "small", "base")
# Options of a model with which it is of no named size.
_WIDTHS = ("model", "embed_dim", "depth", "num_heads", "mlp_ratio")
_BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
# What a recipe has to have, since it is scaled.
_SCALED = ("data_root", "epochs", "warmup_epochs", "effective_batch", "lr")


def settle(args: argparse.Namespace, say: Callable[[str], None] = print) -> Path:
    """Put the settings of a training on a folder into the arguments of a command line.

    The first call finds them by a trial of the machine and writes them to ``folder.json`` in the work directory, later
    ones take them from there. Options that are given are not chosen.

    Args:
        args: of `tools/train.py`, with ``data`` and ``hours``; ``work_dir``, ``cfg_options`` and ``resume`` are set.
        say: takes lines for the user.

    Returns:
        the work directory.

    Raises:
        UserError: for a folder without images, a config that cannot be scaled, or a work directory of another training.
    """
    if args.launcher != "none":
        raise UserError(
            "--data runs in one process: for several, run tools/dist_train.sh with --cfg-options data_root=FOLDER "
            "epochs=... instead."
        )
    config, folder = find_config(args.config), Path(args.data).expanduser().resolve()
    source = ImageSource(folder)
    work_dir = Path(args.work_dir or Path("work_dirs") / f"{config.stem}_{folder.stem}")
    work_dir.mkdir(parents=True, exist_ok=True)
    lock_work_dir(str(work_dir), args.launcher)
    names = hashlib.sha256("\n".join(source.paths).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    recipe = config.resolve()
    asked: dict[str, Any] = {
        "config": str(recipe.relative_to(ROOT) if recipe.is_relative_to(ROOT) else recipe),
        "data": str(folder),
        "images": len(source),
        "names": names,
        "seed": args.seed,
        "amp": args.amp,
        "deterministic": args.deterministic,
        "options": args.cfg_options or {},
    }
    asked = json.loads(json.dumps(asked, default=str))
    file = work_dir / FILE
    if file.exists():
        chosen = _read(file, asked, args.hours)
        say(f"{work_dir}: settings of {file}, resumed from its last checkpoint if it has one")
    else:
        left = sorted(path.name for kind in ("epoch", "iter") for path in work_dir.glob(f"{kind}_*.pth"))
        if left:
            raise UserError(f"--work-dir {work_dir} holds {left[-1]} of another training: give another --work-dir.")
        chosen = _find(args, folder, len(source), say)
        content = {"version": _VERSION, "asked": asked, "hours": args.hours or HOURS, "chosen": chosen}
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    args.cfg_options = {**(args.cfg_options or {}), **chosen}
    args.work_dir, args.resume = str(work_dir), args.resume or "auto"
    return work_dir


def _read(file: Path, asked: dict[str, Any], hours: float | None) -> dict[str, Any]:
    """The options that an earlier call chose, if it asked for the same."""
    try:
        content = json.loads(file.read_text())
        before, chosen = content["asked"], dict(content["chosen"])
        if content["version"] != _VERSION or set(before) != set(asked):
            raise ValueError("of another version")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): give another --work-dir.") from None
    now = {**asked, "hours": content.get("hours") if hours is None else hours}
    for key, value in {**before, "hours": content.get("hours")}.items():
        if now[key] != value:
            raise UserError(
                f"{file}: this training began with {key} = {value!r}, and is now asked for {now[key]!r}: the result "
                "would be neither. Give the same again to resume it, or another --work-dir to start anew."
            )
    return chosen


def _find(args: argparse.Namespace, folder: Path, images: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The options that make the recipe fit folder, machine and time."""
    given = dict(args.cfg_options or {})
    seed = {} if args.seed is None else {"seed": args.seed}
    options: dict[str, Any] = {"data_root": str(folder), **given, **seed}
    # With the recipe's own length, whose share of warm-up is kept.
    cfg = read_config(args.config, {name: value for name, value in options.items() if name != "epochs"})
    _check(cfg, args.config)
    hours = HOURS if args.hours is None else args.hours
    if not hours > 0:
        raise UserError(f"--hours {hours:g}: expected a positive number.")
    chosen: dict[str, Any] = {"data_root": str(folder)}
    if "effective_batch" not in given and batch_of(images, cfg.effective_batch) != cfg.effective_batch:
        chosen |= _smaller_batch(args.config, options, cfg, batch_of(images, cfg.effective_batch))
    batch = chosen.get("effective_batch", cfg.effective_batch)
    if batch > images:
        raise UserError(f"effective_batch = {batch}, but {folder} has {images} images: give a smaller one.")
    epochs = given.get("epochs")
    largest = given.get("train_dataloader.batch_size")
    plan = {
        "config": str(args.config), "options": {**options, **chosen}, "amp": args.amp, "models": _models(cfg, given),
        "batches": [divide(batch, 1, largest).batch_size] if largest else _batches(cfg, batch),
        "needed": needed_speed(images, batch, epochs or cfg.epochs, hours), "seconds": SECONDS,
    }  # fmt: skip
    say(f"{images} images; a trial of {args.config} on this machine, for a training of {hours:g} h:")
    measured, precision = run_trial(plan, lambda one: say(f"  {_row(one)}"))
    choice = choose(measured, images, batch, cfg.epochs, hours, epochs)
    say(
        f"chosen: {choice.measured.model}, {choice.measured.batch_size} images at once, {batch} a step, {choice.steps} "
        f"steps an epoch, {choice.epochs} epochs, {precision}: about {choice.hours:.2g} h"
    )
    return chosen | _options(cfg, choice, given, measured, precision)


def _options(
    cfg: Config, choice: Choice, given: dict[str, Any], measured: list[Measured], precision: str
) -> dict[str, Any]:
    """The options of a choice; those that were given are left out."""
    intervals = choice.intervals()
    hooks = [str(hook.get("type")) for hook in cfg.get("custom_hooks") or []]
    warm_up = round(cfg.warmup_epochs * choice.epochs / cfg.epochs, 3)
    options: dict[str, Any] = {
        "model.model": choice.measured.model,
        "epochs": choice.epochs,
        "warmup_epochs": warm_up,
        "train_dataloader.batch_size": choice.measured.batch_size,
        "default_hooks.checkpoint.interval": intervals["checkpoint"],
        "default_hooks.logger.interval": intervals["log"],
        "record.dataset": Path(cfg.data_root).stem,
        "record.trial": {"measured": [asdict(one) for one in measured], "hours": round(choice.hours, 4)},
    }
    if "precision" in cfg and cfg.precision == "auto":
        options["precision"] = precision
    if "AdPEVisualizationHook" in hooks:
        options[f"custom_hooks.{hooks.index('AdPEVisualizationHook')}.interval"] = intervals["pictures"]
    return {name: value for name, value in options.items() if name not in given}


def _smaller_batch(config: str, options: dict[str, Any], cfg: Config, batch: int) -> dict[str, Any]:
    """A smaller batch with rates in proportion, where the config does not compute them itself."""
    chosen: dict[str, Any] = {"effective_batch": batch}
    follows = read_config(config, {**options, **chosen})
    for name in ("lr", "adversary_lr"):
        if name in cfg and name not in options and follows[name] == cfg[name]:
            chosen[name] = cfg[name] * batch / cfg.effective_batch
    return chosen


def _check(cfg: Config, config: str) -> None:
    model = cfg.get("model") or {}
    missing = [name for name in _SCALED if not cfg.get(name)]
    if model.get("type") != "AdPEPretraining" or missing:
        what = f"has no {', '.join(missing)}" if missing else f"trains {model.get('type')}"
        raise UserError(
            f"{config} {what}: --data takes a pretraining recipe, such as pretrain/photos112_adpe or "
            "pretrain/photos112_mae."
        )


def _models(cfg: Config, given: dict[str, Any]) -> list[str]:
    """The recipe's encoder, and larger ones of named sizes if nothing fixes it."""
    own = str(cfg.model.model)
    match = re.fullmatch(r"adpe_vit_([a-z]+)_(patch\d+)", own)
    if match is None or match[1] not in _TRIED or any(cfg.model.get(name) for name in _WIDTHS if name != "model"):
        return [own]
    if "model.model" in given or "model" in given:
        return [own]
    larger = [size for size in _TRIED if SIZES[size]["embed_dim"] > SIZES[match[1]]["embed_dim"]]
    return [own, *(f"adpe_vit_{size}_{match[2]}" for size in larger)]


def _batches(cfg: Config, effective_batch: int) -> list[int]:
    """Batches to try: parts of the effective batch, or all of it for a method that compares the images of a pass."""
    network = dict(cfg.model)
    method = network.get("method") or autoencoder_of(network)
    if method_class(method).whole_batch:
        return [effective_batch]
    return sorted({divide(effective_batch, 1, min(size, effective_batch)).batch_size for size in _BATCHES})


def _row(one: Measured) -> str:
    return (
        f"{one.model}, {one.batch_size} images at once: {one.images_per_s:.3g} images/s over {one.iterations} "
        f"iterations, {one.memory / 2**30:.2f} GiB"
    )
