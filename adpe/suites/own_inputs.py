"""A user's encoder and data in a suite that leaves room for them.

The method with ``checkpoint: "{encoder}"`` starts from the user's file; the others start at random. In a task's options
``"{encoder.KEY}"`` is what the file says of its encoder or its tensors show (``embed_dim``, ``patch_size``...), and
``NAME.*: "{encoder.*}"`` sets all of the architecture below ``NAME``, so that every start has the same.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adpe.errors import UserError
from adpe.suites.suite import Run, Suite, Task, at_data, slug

ENCODER = "{encoder}"
_EVERY = "{encoder.*}"
_KEY = re.compile(r"\{encoder\.(\w+)\}")
# Names that say nothing of the model: the folder is asked instead.
_USUAL = ("model", "pytorch_model", "encoder", "checkpoint", "weights")
# Takes a part of the training images.
_SUBSET = "train_dataloader.dataset.indices"
# Scenes have images for pretraining apart; a user's are those of training.
_TRAINING = "images/training"


def takes_encoder(suite: Suite) -> bool:
    """Whether a method of the suite starts from a file that is named on the command line."""
    return any(method.checkpoint == ENCODER for method in suite.methods)


def with_encoder(suite: Suite, file: str | Path, name: str | None = None) -> Suite:
    """The suite with an encoder in the place that it leaves for one.

    Args:
        suite: as `adpe.suites.suite_file.read_suite` gives it.
        file: of any kind that :func:`adpe.load_encoder` reads.
        name: of the method in tables and paths; by default that of the file, or of its folder.

    Raises:
        UserError: if the suite has no place for one; if the file is missing, cannot be read, or holds no ViT of three
            channels that :class:`adpe.VisionTransformer` covers; for the name of another method.
    """
    if not takes_encoder(suite):
        raise UserError(f"suite {suite.name} takes no --encoder: none of its methods has checkpoint: {ENCODER!r}.")
    path = Path(file).resolve()
    name = name or _usable(path.parent.name if path.stem in _USUAL else path.stem)
    if name in [method.name for method in suite.methods if method.checkpoint != ENCODER]:
        raise UserError(f"--name {name!r} is that of another method of suite {suite.name}: choose another.")
    values = _described(path)
    methods = [
        replace(method, name=name, checkpoint=str(path)) if method.checkpoint == ENCODER else method
        for method in suite.methods
    ]
    before = {method.name: new.name for method, new in zip(suite.methods, methods, strict=True)}
    tasks = [
        replace(task, options=_filled(task, values), methods=tuple(before[one] for one in task.methods))
        for task in suite.tasks
    ]
    return replace(suite, methods=tuple(methods), tasks=tuple(tasks))


def with_data(suite: Suite, root: str | Path, name: str | None = None, whole: bool = True) -> Suite:
    """The suite on data of one's own, for the tasks that run on the data that the suite brings.

    Args:
        suite: whose tasks name ``{data}``.
        root: images, masks and boxes, in the layout of ADE20K with COCO's ``instances_{training,validation}.json``.
        name: of the data in tables; by default that of the folder.
        whole: also in tasks that take a part of the suite's own.

    Raises:
        UserError: if the suite brings no data, or `root` is not laid out as expected.
    """
    from adpe.data.checks.layout import check_coco_root, check_segmentation_root

    if suite.data is None:
        raise UserError(f"suite {suite.name} brings no data, for which --data-root could be taken.")
    root = Path(root).resolve()
    if not root.is_dir():
        raise UserError(f"{root} does not exist: expected images/, annotations/, instances_*.json.")
    masks = check_segmentation_root(root)
    boxes = check_coco_root(root)
    check_coco_root(root, "instances_validation.json", "images/validation", classes=boxes.classes)
    tasks = []
    for task in suite.tasks:
        if any(isinstance(value, str) and "{data}" in value for value in task.options.values()):
            classes = (boxes if "detection" in task.config else masks).classes
            own = {key: value for key, value in task.options.items() if key != _SUBSET or not whole}
            told = {"num_classes": len(classes), "record.dataset": name or root.name}
            task = replace(task, options={**at_data(own, root, _TRAINING), **told})
        tasks.append(task)
    methods = [replace(method, options=at_data(method.options, root, _TRAINING)) for method in suite.methods]
    return replace(suite, tasks=tuple(tasks), methods=tuple(methods), data=None)


def check_sizes(runs: Sequence[Run]) -> None:
    """Check that images of a suite's runs are whole patches of its encoder.

    Raises:
        UserError: naming the sizes in pixels that are not, and the nearest that are.
    """
    wrong: dict[str, int] = {}
    patch = 1
    for run in runs:
        patch = next((value for key, value in run.options.items() if key.endswith(".patch_size")), 1)
        for key, size in run.options.items():
            if key.rpartition(".")[2] in ("image_size", "crop_size", "img_size") and isinstance(size, int):
                wrong |= {f"{slug(run.task)}:{key}": size} if size % patch else {}
    if wrong:
        changes = " ".join(f"{key}={max(size // patch, 1) * patch}" for key, size in wrong.items())
        raise UserError(
            f"patches of {patch} pixels do not divide images of {', '.join(map(str, sorted({*wrong.values()})))}: "
            f"give other sizes, such as --task-options {changes}"
        )


def refuse_others(runs: Sequence[Run], folder: Path) -> None:
    """Check that what is in the folder was run by the same commands: on the same encoder and data.

    Raises:
        UserError: naming the first run that was not.
    """
    from adpe.suites.local_runner import changed_command

    for run in runs:
        if before := changed_command(run, folder):
            raise UserError(
                f"{run.work_dir(folder)} was run on another encoder or with other options ({before}). Remove it, or "
                "choose another --work-dir."
            )


def _described(path: Path) -> dict[str, Any]:
    """Options of :class:`adpe.VisionTransformer` that build the encoder of a file, and ``model``, the nearest name."""
    from adpe.checkpoints.loading import describe_encoder, load_encoder
    from adpe.models.factory import SIZES
    from adpe.models.vit import VisionTransformer

    found = describe_encoder(path)
    values = found.specification.options()
    del values["img_size"]  # that of the task
    if not found.known("pretrain_img_size"):
        del values["pretrain_img_size"]
    if values["in_chans"] != 3:
        raise UserError(f"{path}: its encoder takes {values['in_chans']} channels, the tasks' images have 3.")
    sizes = ("embed_dim", "depth", "num_heads")
    load_encoder(path, verbose=False)  # what does not fit is told now, not after the runs of the other starts
    named = [name for name, size in SIZES.items() if all(size[key] == values[key] for key in sizes)]
    defaults = inspect.signature(VisionTransformer).parameters
    kept = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if key in (*sizes, "patch_size") or value != defaults[key].default
    }
    return {"model": f"adpe_vit_{(named or ['tiny'])[0]}_patch{values['patch_size']}", **kept}


def _filled(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for key, value in task.options.items():
        if value == _EVERY:
            filled |= {f"{key.removesuffix('*')}{name}": one for name, one in values.items()}
        elif isinstance(value, str) and (match := _KEY.fullmatch(value)):
            if match[1] not in values:
                raise UserError(f"task {task.name}: {key}: {value} is none of {', '.join(values)}.")
            filled[key] = values[match[1]]
        else:
            filled[key] = value
    return filled


def _usable(name: str) -> str:
    """A file's name as the name of a method."""
    return re.sub(r"[^A-Za-z0-9 +._-]+", "-", name).strip(" +._-") or "encoder"
