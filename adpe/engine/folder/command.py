"""`adpe train CONFIG --data FOLDER` and :func:`adpe.pretrain`: one call trains, resumes, and says what to do next."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from adpe.engine.folder.settings import settle
from adpe.engine.hooks.checkpointing import STOPPING, latest_checkpoint
from adpe.engine.launch import train
from adpe.engine.processes import unlock_work_dirs
from adpe.errors import EXIT_PREEMPTED, UserError

CONFIG = "pretrain/photos112_adpe"


def train_folder(args: argparse.Namespace) -> Path:
    """Train on a folder as the command line says, or resume; prints what to type next. Returns the work directory.

    Raises:
        UserError: as :func:`adpe.engine.folder.settings.settle` and the training.
        SystemExit: with status 85 if a signal stopped it, after a checkpoint was saved.
    """
    work_dir = settle(args)
    if (work_dir / "record.jsonl").is_file():
        print(f"{work_dir} holds a finished training.")
    else:
        try:
            train(args)
        except SystemExit as stop:
            if stop.code == EXIT_PREEMPTED:
                print(f"stopped; the same command resumes it in {work_dir}", flush=True)
            raise
    print(f"\n{next_steps(work_dir, args.data)}", flush=True)
    return work_dir


def pretrain(
    folder: str | Path,
    config: str | Path = CONFIG,
    work_dir: str | Path | None = None,
    hours: float | None = None,
    seed: int | None = None,
    **options: Any,
) -> Path:
    """Pretrain an encoder on a folder or archive of images, in a size, batch and length that fit this machine.

    A trial of some seconds measures images per second and memory for a few encoders and batches. What it leads to is
    printed and kept in the work directory; the same call resumes a stopped training, bit by bit.

    Args:
        folder: images, see :class:`adpe.data.sources.images.ImageSource`.
        config: a pretraining recipe.
        work_dir: for checkpoints, pictures and the encoder; default: ``work_dirs/<config>_<folder>``.
        hours: that the training may take; 1 by default.
        seed: by default the recipe's.
        options: of the config, with ``__`` for a dot, e.g. ``epochs=100, model__depth=6``; they are not chosen.

    Returns:
        the file of the encoder, for :func:`adpe.load_encoder`.

    Raises:
        UserError: as :func:`train_folder`.
        KeyboardInterrupt: if Ctrl-C stopped it; a checkpoint was saved.
    """
    dotted = {name.replace("__", "."): value for name, value in options.items()}
    args = argparse.Namespace(
        config=str(config), data=str(folder), hours=hours, work_dir=work_dir and str(work_dir), cfg_options=dotted,
        launcher="none", resume=None, amp=None, seed=seed, deterministic=False,
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        return exported(train_folder(args))
    except SystemExit as stop:
        raise KeyboardInterrupt("stopped after a checkpoint: call it again to resume") from stop
    finally:
        unlock_work_dirs()
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def exported(work_dir: Path) -> Path:
    """The file that a finished pretraining wrote for transfer.

    Raises:
        UserError: if there is none.
    """
    found = sorted(work_dir.glob("*.safetensors"))
    if not found:
        raise UserError(f"{work_dir} holds no encoder: its training did not end. Start it again with another work_dir.")
    return found[0]


def next_steps(work_dir: Path, data: str) -> str:
    """What a finished training left, and commands that use it."""
    encoder, found = exported(work_dir), latest_checkpoint(work_dir)
    pictures = sorted(work_dir.glob("*/vis_data/vis_image"))
    lines = [f"encoder   {encoder}"]
    lines += [f"pictures  {folder}" for folder in pictures[-1:]]
    lines += ["", "Next, for example:"]
    if found is not None and encoder.stem == "encoder":
        lines.append(_typed("visualize", "reconstruct", found[0], data, "--out", work_dir / "reconstruct.png"))
    lines += [
        _typed("visualize", "attention", encoder, data, "--out", work_dir / "attention.png"),
        _typed("evaluate", "imagenet/knn_vitb", encoder) + " --cfg-options data_root=LABELLED num_classes=N",
        _typed("share", encoder, work_dir / "shared") + " --license NAME",
    ]
    return "\n".join(lines)


def _typed(word: str, *arguments: str | Path) -> str:
    """A command as the user types it: `adpe`, or the tool in a checkout where the training was started with one."""
    from adpe.cli import COMMANDS

    tool, words, _ = COMMANDS[word]
    own = Path(sys.argv[0])
    start = ["python", str(own.with_name(tool)), *words] if own.name == "train.py" else ["adpe", word]
    return "  " + shlex.join([*start, *map(str, arguments)])
