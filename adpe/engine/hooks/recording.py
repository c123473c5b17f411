"""The hook that writes the record of a finished run, and what it says of the run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from adpe.engine.resolved_protocol import compared, data_protocol, describe
from adpe.engine.settings.precision import precision_of
from adpe.errors import UserError
from adpe.evaluations.metrics.per_image import PerImageStatistics
from adpe.files import ROOT
from adpe.leaderboard.records import SCHEMA, append_record, file_sha256
from adpe.transfer.backbones.initialisation import described_start

# Top-level config keys that say where and how a run is executed, not what it computes.
_EXECUTION = (
    "work_dir", "resume", "load_from", "launcher", "randomness", "record", "record_file", "log_level", "visualizer",
    "env_cfg", "tracker",
)  # fmt: skip


def config_sha256(cfg: Config) -> str:
    """Hash of what a config computes: its text without seeds, work directory and other circumstances."""
    kept = _without_seeds({name: value for name, value in cfg.to_dict().items() if name not in _EXECUTION})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


@HOOKS.register_module()
class AdPERecordHook(Hook):
    """Writes the run's record at the end of training, with the metrics of the validation of the final state.

    The record goes to ``<work_dir>/record.jsonl`` and to ``cfg.record_file`` if that is set. Who and what comes from
    ``cfg.record = dict(method=..., task=..., dataset=..., start=..., suite=..., sweep=...)``; without it nothing is
    written. A resumed run that had already written its record writes none. Per-image statistics of the last validation
    go to ``<work_dir>/per_image.npz`` where the metric is one that `adpe.evaluations.metrics.per_image` knows.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.validated_at: int | None = None
        self.seconds = 0.0
        self.validating = 0.0
        self.first_iter = 0
        self.protocol: dict[str, Any] = {}
        self.per_image = PerImageStatistics()
        self.per_image_file: str | None = None

    def before_train(self, runner: Any) -> None:
        self.first_iter = runner.iter
        if runner.cfg.get("record") and is_main_process():
            # The config as it was before it was fitted to processes, and what the launcher knows of the task.
            source, swept, task = getattr(runner, "source", (runner.cfg, (), None))
            own = describe(source, runner.model, runner.optim_wrapper, swept)
            own["data"] = data_protocol(runner)
            self.protocol = compared(own, task)
        self.started = time.time()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.seconds = float(checkpoint["meta"].get("wall_time_s", 0.0))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["wall_time_s"] = self.seconds + time.time() - self.started

    def before_val(self, runner: Any) -> None:
        self.validation_started = time.time()
        self.per_image.start()

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter >= runner.max_iters:
            self.per_image.collect(runner.val_loop.evaluator, outputs)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        numbers = {k: float(v) for k, v in (metrics or {}).items() if isinstance(v, (int, float)) or _scalar(v)}
        # mmdet's metrics carry the metric's name, as in coco/bbox_mAP.
        short = {name.rpartition("/")[2]: value for name, value in numbers.items()}
        self.metrics = short if len(short) == len(numbers) else numbers
        self.validated_at = runner.iter
        path = os.path.join(runner.work_dir, "per_image.npz")
        if runner.iter >= runner.max_iters and self.per_image.save(runner.val_loop.evaluator, path):
            self.per_image_file = path
        self.validating += time.time() - self.validation_started

    def after_train(self, runner: Any) -> None:
        # A run killed in its last validation resumes with nothing left to train.
        if runner.val_loop is not None and self.validated_at != runner.iter:
            runner.val_loop.run()
        training = time.time() - self.started - self.validating
        rate = (runner.iter - self.first_iter) / training if training > 0 else 0.0
        wall_time = self.seconds + time.time() - self.started
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        runner.logger.info(
            f"Finished: {runner.iter} iterations in {wall_time:.0f} s; {metrics or 'no validation'}; {runner.work_dir}"
        )
        if runner.cfg.get("record") and is_main_process():
            last = runner.message_hub.runtime_info.get("last_ckpt")
            wrapper = runner.cfg.optim_wrapper
            accumulated = wrapper.get("accumulative_counts", 1)
            run = Run(
                runner.cfg,
                getattr(runner, "source", (runner.cfg,))[0],
                runner.work_dir,
                runner.seed,
                self.metrics,
                wall_time,
                self.protocol,
                self.per_image_file,
                last if last and os.path.isfile(last) else None,
                runner.world_size,
                precision_of(wrapper),
                runner.cfg.train_dataloader.batch_size * runner.world_size * accumulated,
                runner.max_iters // accumulated,
                rate,
            )
            write_record(make_record(run), runner.work_dir, runner.cfg.get("record_file"))


@dataclass
class Run:
    """A finished run, for its record.

    Attributes:
        cfg: the config that ran.
        source: the config as it was read.
        work_dir: of the run.
        seed: of the run.
        metrics: of the final evaluation.
        seconds: of the whole run, resumptions included.
        protocol: `protocol`, `fingerprint`, `task_fingerprint` and `own` of `adpe.engine.resolved_protocol`.
        per_image: file of per-image statistics of the final validation, if there is one.
        checkpoint: the last one, if there is one.
        processes: how many.
        precision: of the training.
        effective_batch: images of a step.
        iterations: optimiser steps.
        rate: training iterations per s.
    """

    cfg: Config
    source: Any
    work_dir: str
    seed: int
    metrics: dict[str, float]
    seconds: float
    protocol: dict[str, Any]
    per_image: str | None = None
    checkpoint: str | None = None
    processes: int = 1
    precision: str = "float32"
    effective_batch: int = 0
    iterations: int = 0
    rate: float = 0.0


def make_record(run: Run) -> dict[str, Any]:
    """The record of a finished run, which `append_record` takes."""
    cfg = run.cfg
    given: dict[str, Any] = cfg.record.to_dict()
    # A resumed run has its own checkpoint in `load_from`; where it began is in the config as it was read.
    pretrained = next(_pretrained(cfg.model.to_dict()), None) or (
        None if run.source.get("resume") else run.source.get("load_from")
    )
    origin = _origin(pretrained)
    if origin and origin["epochs"] is not None:
        given["pretraining_epochs"] = origin["epochs"]  # what the file says, whatever the command line does
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "schema": SCHEMA,
        "run": f"{Path(run.work_dir).name}-{run.seed}",
        "suite": None,
        "sweep": None,
        "config": str(cfg.filename),
        "config_sha256": config_sha256(cfg),
        **given,
        # A file that was loaded is a start, whatever the config calls it.
        "start": "pretrained" if pretrained else given.get("start"),
        "seed": run.seed,
        "metrics": run.metrics,
        "checkpoint": run.checkpoint,
        "checkpoint_sha256": file_sha256(run.checkpoint) if run.checkpoint else None,
        "pretrained_sha256": file_sha256(pretrained) if pretrained and os.path.isfile(pretrained) else None,
        "pretrained_from": origin,
        "per_image": run.per_image,
        "per_image_sha256": file_sha256(run.per_image) if run.per_image else None,
        "commit": _commit(),
        "versions": _versions(),
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "processes": run.processes,
            "cores": os.cpu_count(),
        },
        "precision": run.precision,
        "effective_batch": run.effective_batch,
        "iterations": run.iterations,
        **run.protocol,
        "wall_time_s": round(run.seconds, 2),
        "peak_memory_bytes": peak,
        "iterations_per_s": round(run.rate, 4),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_record(record: dict[str, Any], work_dir: str, also: str | None) -> None:
    """Append a record to ``<work_dir>/record.jsonl`` and to the file `also`, if there is one."""
    for path in (os.path.join(work_dir, "record.jsonl"), also):
        if path is not None:
            append_record(path, record)


def _pretrained(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("type") == "Pretrained" and node.get("checkpoint"):
            yield node["checkpoint"]
        for value in node.values():
            yield from _pretrained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _pretrained(value)


def _origin(checkpoint: str | None) -> dict[str, Any] | None:
    """What a checkpoint says of the run that it comes from; None of one that says nothing, or holds another encoder."""
    try:
        start = described_start({"checkpoint": checkpoint})
    except UserError:
        return None
    if start is None:
        return None
    said = start[1].specification
    origin = {name: getattr(said, name) for name in ("method", "recipe", "epochs", "seed", "config_sha256")}
    return origin if any(value is not None for value in origin.values()) else None


def _commit() -> str | None:
    """Commit of the source tree, with ``-dirty`` if it was changed; None outside a repository."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "mmengine", "mmcv", "mmseg", "mmdet", "timm", "numpy")
    loaded = {name: getattr(sys.modules[name], "__version__", None) for name in names if name in sys.modules}
    return {"python": platform.python_version(), **{name: v for name, v in loaded.items() if isinstance(v, str)}}


def _without_seeds(node: Any) -> Any:
    # The seed is a variable of the configs, which goes into the data sets that draw crops.
    if isinstance(node, dict):
        return {name: _without_seeds(value) for name, value in node.items() if name != "seed"}
    if isinstance(node, (list, tuple)):
        return [_without_seeds(value) for value in node]
    return node


def _scalar(value: Any) -> bool:
    return getattr(value, "size", None) == 1 or (torch.is_tensor(value) and value.numel() == 1)
