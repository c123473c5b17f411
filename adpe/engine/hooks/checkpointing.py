"""Training checkpoints that survive a kill at any moment, and execute nothing when read.

A checkpoint is written to a temporary file, synced, verified and renamed; older ones are removed after that, and the
pointer file ``last_checkpoint`` is replaced the same way. It holds tensors and plain types alone, so that
``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import os
import signal
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, is_distributed, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import HOOKS

from adpe.checkpoints.reading import DATA_TYPES, LoggedScalar, refuse_bomb
from adpe.engine.mmengine_internals import StepCheckpointHook, between_steps
from adpe.engine.resuming.reproducible import random_state
from adpe.errors import EXIT_PREEMPTED, UserError
from adpe.files import atomic_write

# What asks a run to save a checkpoint and end: schedulers send SIGTERM or SIGUSR1, Ctrl-C is SIGINT.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# s within which a second SIGINT is the first one, passed on by a launcher; later it means: without a checkpoint.
_ONE_SIGNAL = 2.0


def plain(value: Any, name: str = "checkpoint") -> Any:
    """`value` in tensors and plain Python types.

    Raises:
        TypeError: for an object that is neither; it says where it is.
    """
    if value is None or isinstance(value, (bool, bytes, torch.Tensor)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, HistoryBuffer):
        return {"history": [torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in value.data]}
    if isinstance(value, dict):
        mapping = type(value) if type(value) in (OrderedDict, Counter) else dict
        return mapping({plain(key, name): plain(item, f"{name}[{key!r}]") for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(f"{name} is a {type(value).__module__}.{type(value).__name__}, which a checkpoint cannot hold.")


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Add the random state to a checkpoint that is about to be saved, and reduce everything to plain types.

    Entries of the message hub that no plain type can hold are left out.

    Args:
        checkpoint: as mmengine makes it, with ``message_hub``; changed in place.

    Raises:
        TypeError: naming another entry that no plain type can hold.
    """
    hub = checkpoint["message_hub"]
    for name, value in list(hub["runtime_info"].items()):
        try:
            plain(value)
        except TypeError:
            del hub["runtime_info"][name]
            hub["resumed_keys"] = {key: kept for key, kept in hub["resumed_keys"].items() if key != name}
    checkpoint["random_state"] = random_state()
    checkpoint.update(plain(checkpoint))


def read_training_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint, ours or mmengine's, verifying every byte and executing nothing.

    Args:
        path: local file.
        map_location: as for ``torch.load``.

    Returns:
        dict with ``meta`` and ``state_dict``; for resuming also ``optimizer``, ``param_schedulers``, ``message_hub``.

    Raises:
        UserError: if the file is missing, truncated, not a checkpoint, or holds objects that only code could rebuild.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist.")
    try:
        if zipfile.is_zipfile(path):
            refuse_bomb(path)
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"checkpoint {path} is damaged (checksum of {damaged}): use an earlier one.")
        with torch.serialization.safe_globals(DATA_TYPES):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}): truncated, of another format, or not safe to read."
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a training checkpoint: it has no state_dict.")
    for name in ("meta", "message_hub"):
        if not isinstance(checkpoint.setdefault(name, {}), dict):
            raise UserError(f"{path} is not a training checkpoint: its {name} is no dict.")
    # mmengine would execute this one as Python when resuming.
    checkpoint["meta"].pop("config", None)
    hub = checkpoint["message_hub"]
    scalars = hub.get("log_scalars", {})
    for name, value in scalars.items() if isinstance(scalars, dict) else ():
        if isinstance(value, dict):  # ours
            hub["log_scalars"][name] = HistoryBuffer(*(part.cpu().numpy() for part in value["history"]))
        elif isinstance(value, LoggedScalar):  # mmengine's
            hub["log_scalars"][name] = HistoryBuffer(*value.history())
    return checkpoint


def latest_checkpoint(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of `work_dir` that is whole: the one ``last_checkpoint`` names, else the one before.

    Returns:
        its path and ``meta``, or None if there is no checkpoint at all.

    Raises:
        UserError: if there are checkpoints and none can be read.
    """
    work_dir = Path(work_dir)
    found = [path for kind in ("epoch", "iter") for path in work_dir.glob(f"{kind}_*.pth")]
    candidates = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    pointer = work_dir / "last_checkpoint"
    if pointer.is_file():
        # Only the name counts, so that a work directory can be moved.
        named = work_dir / Path(pointer.read_text(errors="replace").strip() or "empty").name
        if named not in candidates:
            print_log(f"{pointer} names {named.name}, which does not exist.", "current", level=30)
        else:
            candidates = [named, *(path for path in candidates if path != named)]
    for path in candidates:
        try:
            return path, read_training_checkpoint(path)["meta"]
        except UserError as error:
            print_log(f"{error} Falling back to the checkpoint before it.", "current", level=30)
    if candidates:
        raise UserError(f"none of the {len(candidates)} checkpoints in {work_dir} can be read; start without --resume.")
    return None


@HOOKS.register_module()
class AdPECheckpointHook(StepCheckpointHook):
    """mmengine's CheckpointHook, made safe against kills; on SIGTERM, SIGUSR1 or SIGINT it saves and ends the run.

    Arguments are those of mmengine's hook, for local paths. ``max_keep_ckpts`` should be at least 2, so that there is
    one to fall back to. A stopped run saves ``iter_<n>.pth`` at the end of an optimizer step and exits with status
    `EXIT_PREEMPTED` (85). A second Ctrl-C ends it at once.

    Args:
        poll_interval: with several processes, iterations between the looks at whether any of them was told to stop.
        **kwargs: of mmengine's CheckpointHook.
    """

    def __init__(self, *args: Any, poll_interval: int = 20, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.poll_interval = poll_interval
        self.signal = 0

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        if is_main_process():
            for left in Path(self.out_dir).glob(".*.pth.*.tmp"):  # by a run killed while it was saving
                left.unlink()
        self.before = {number: signal.signal(number, self._note) for number in STOPPING}

    def _note(self, number: int, frame: Any) -> None:
        if not self.signal:
            self.signal, self.noted = number, time.monotonic()
            if is_main_process():
                again = "; once more ends it without" if number == signal.SIGINT else ""
                text = f"{signal.Signals(number).name}: saving a checkpoint after this iteration{again}\n"
                os.write(2, text.encode())  # a handler may interrupt a print
        elif number == signal.SIGINT and time.monotonic() - self.noted > _ONE_SIGNAL:
            raise KeyboardInterrupt

    def after_train(self, runner: Any) -> None:
        super().after_train(runner)
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        number = self._told_to_stop(runner)
        if number:
            step = runner.iter + 1
            filename = f"iter_{step}.pth"
            runner.message_hub.update_info("stopped_at", filename)
            runner.save_checkpoint(self.out_dir, filename, meta={"epoch": runner.epoch, "iter": step})
            self._point_to(runner, os.path.join(self.out_dir, filename))
            runner.logger.warning(
                f"Stopped by {signal.Signals(number).name}: saved {os.path.join(self.out_dir, filename)}. To resume, "
                "run the same command with --resume."
            )
            raise SystemExit(EXIT_PREEMPTED)

    def _told_to_stop(self, runner: Any) -> int:
        """The number of the signal that any process got, if the run can stop here, else 0."""
        # Gradients between optimizer steps are not saved.
        if between_steps(runner.optim_wrapper):
            return 0
        if not is_distributed():
            return self.signal
        if (runner.iter + 1) % self.poll_interval:
            return 0
        told = torch.tensor(self.signal, device="cuda" if torch.cuda.is_available() else "cpu")
        all_reduce(told, "max")
        return int(told.item())

    def save_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and not (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids[0])
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        stopped_at = runner.message_hub.runtime_info.pop("stopped_at", None)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            **self.args,
        )
        self._point_to(runner, self.last_ckpt)
        if is_main_process():
            for name in {outdated, stopped_at} - {None, filename}:
                Path(self.out_dir, name).unlink(missing_ok=True)

    def _point_to(self, runner: Any, path: str) -> None:
        if is_main_process():
            with atomic_write(Path(runner.work_dir, "last_checkpoint")) as pointer:
                pointer.write_text(path)
