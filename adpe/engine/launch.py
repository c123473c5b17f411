"""Training and evaluation of any config through mmengine's Runner: what `tools/train.py` and `tools/test.py` do."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from adpe.distributed import port_in_use
from adpe.engine.config import check_files, dicts, mistake_in_config, read_config
from adpe.engine.evaluating import evaluate
from adpe.engine.hooks.checkpointing import STOPPING, latest_checkpoint, read_training_checkpoint
from adpe.engine.hooks.defaults import complete_hooks, complete_visualizer
from adpe.engine.hooks.label_guard import classes_of_checkpoint
from adpe.engine.hooks.multi_scale import record_multi_scale
from adpe.engine.hooks.recording import config_sha256
from adpe.engine.labels.annotations import match_annotations
from adpe.engine.options.conflicts import check_command_line, check_length, check_runner
from adpe.engine.processes import check_launcher, join, leave, lock_work_dir, lost_process, unlock_work_dirs
from adpe.engine.resolved_protocol import swept_paths, task_protocol
from adpe.engine.resuming.reproducible import make_reproducible
from adpe.engine.runner import AdPERunner
from adpe.engine.settings.device import crop_on_device, fit_to_device
from adpe.engine.settings.effective_batch import apply_effective_batch
from adpe.engine.settings.precision import request_precision, settle_precision
from adpe.engine.settings.start import settle_start
from adpe.engine.trackers import complete_trackers
from adpe.errors import EXIT_INTERRUPTED, EXIT_LOST, EXIT_MISTAKE, EXIT_PREEMPTED, UserError, print_error
from adpe.evaluations.metrics.unrounded import use_unrounded_metrics
from adpe.files import atomic_write
from adpe.option_values import OptionAction
from adpe.transfer.tta import use_tta

_RUNS = itertools.count()
_VALIDATION = ("val_dataloader", "val_cfg", "val_evaluator")


def train_main(arguments: list[str] | None = None) -> int:
    """Command line of `tools/train.py`. Returns the exit status."""
    parser = _parser("Train a config: pretraining, segmentation or detection.")
    parser.add_argument("--resume", nargs="?", const="auto", metavar="PATH", help="resume from a checkpoint; without "
                        "PATH, from the newest whole one in the work directory")  # fmt: skip
    parser.add_argument("--amp", nargs="?", const="bf16", choices=["bf16", "fp16"], help="mixed precision")
    parser.add_argument("--seed", type=int, help="random seed")
    parser.add_argument("--deterministic", action="store_true", help="deterministic algorithms, slower on a GPU")
    parser.add_argument("--data", metavar="FOLDER", help="pretrain on a folder or archive of images, in a size, batch "
                        "and length that a trial finds for this machine; the same command resumes")  # fmt: skip
    parser.add_argument("--hours", type=float, help="that a training with --data may take; default: 1")
    args = parser.parse_args(arguments)
    if args.data is None:
        if args.hours is not None:
            parser.error("--hours goes with --data")
        return _run(train, args)
    from adpe.engine.folder.command import train_folder  # which trains through this module

    return _run(train_folder, args)


def test_main(arguments: list[str] | None = None) -> int:
    """Command line of `tools/test.py`. Returns the exit status."""
    parser = _parser("Evaluate a checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("--out", help="file for the metrics (.json) or for the predictions (.pkl)")
    parser.add_argument("--show-dir", help="folder for pictures of the predictions")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation, as the config's tta_pipeline says")
    return _run(test, parser.parse_args(arguments))


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="a config file; it is Python, and is executed")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints; default: work_dirs/<name of the config>")
    parser.add_argument("--cfg-options", nargs="+", action=OptionAction, metavar="KEY=VALUE", help="change the config")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _run(command: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Run a command on this process, telling a user's mistake in a sentence (status 2).

    A rank that others wait for ends here instead of returning.
    """
    status = 0
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        check_launcher(args.launcher)
        command(args)
    except SystemExit as stop:
        status = int(stop.code or 0)
    except KeyboardInterrupt:
        resume = (
            " To resume from the last checkpoint, run the same command with --resume." if command is not test else ""
        )
        _report(UserError(f"interrupted.{resume}"), args.launcher)
        status = EXIT_INTERRUPTED
    except Exception as error:
        status = _failed(error, args.launcher)
    finally:
        unlock_work_dirs()
    # After a failure the others may be anywhere, and waiting for them would hang.
    if torch.distributed.is_initialized() and status in (0, EXIT_PREEMPTED):
        leave(status)
    if status != EXIT_PREEMPTED:  # a launcher may end a process that is about to end with this status
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler or signal.SIG_DFL)
    return status


def _failed(error: Exception, launcher: str) -> int:
    """Tell an error, in a sentence if it is a user's mistake or another process's failure. Returns the exit status."""
    busy = port_in_use(error)
    if busy:
        return _report(busy, launcher)
    mistake = error if isinstance(error, UserError) else mistake_in_config(error)
    lost = lost_process(error) if launcher != "none" else None
    if lost:
        _report(UserError(lost), launcher)
        return EXIT_LOST
    if mistake is None:
        traceback.print_exc()
        return 1
    return _report(mistake, launcher)


def _report(error: UserError, launcher: str) -> int:
    rank = int(os.environ.get("RANK", 0)) if launcher != "none" else 0
    print_error(error, f"rank {rank}: " if rank else "")
    return EXIT_MISTAKE


def _print_once(line: str) -> None:
    """Print a line once, before the Runner and its logger are there."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _named(cfg: Config) -> Config:
    """The config with a name of its own for a later run of this process: mmengine tells runs apart by the second."""
    number = next(_RUNS)
    if number:
        cfg.experiment_name = f"{cfg.get('experiment_name') or Path(str(cfg.filename)).stem}_{number}"
    return cfg


def train(args: argparse.Namespace) -> AdPERunner | dict[str, float]:
    """Train the config of the command line, or run its evaluation on frozen features."""
    cfg = _config(args)
    lock_work_dir(cfg.work_dir, args.launcher)
    if cfg.get("evaluation"):
        return evaluate(cfg, args)
    for name in ("train_dataloader", "train_cfg", "optim_wrapper", "model"):
        if not isinstance(cfg.get(name), dict):
            raise UserError(f"config {cfg.filename} has no dict {name}, which training needs.")
    given = [name for name in _VALIDATION if cfg.get(name) is not None]
    if given and len(given) < len(_VALIDATION):
        missing = " and ".join(name for name in _VALIDATION if name not in given)
        raise UserError(
            f"config {cfg.filename} sets {' and '.join(given)}, but {missing} is None: to train without validation set "
            f"all three, --cfg-options {' '.join(f'{name}=None' for name in _VALIDATION)}."
        )
    check_length(cfg)
    check_files(cfg, ["train_dataloader", "val_dataloader"])
    cfg.randomness = ConfigDict(cfg.get("randomness") or {})
    if args.seed is not None:
        cfg.randomness.seed = args.seed
        # In a config that was written by a run, nothing is computed from its seed.
        for _, node in dicts(cfg.train_dataloader.get("dataset"), "dataset"):
            if isinstance(node.get("seed"), int):
                node["seed"] = args.seed
    if cfg.randomness.get("seed") is None:
        raise UserError(f"config {cfg.filename} sets no randomness.seed: give --seed, so that the run can be repeated.")
    if args.deterministic:
        cfg.randomness.deterministic = True
        # cuBLAS asks for this before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    request_precision(cfg, args.amp)
    complete_visualizer(cfg)
    complete_trackers(cfg, _print_once)
    source = copy.deepcopy(cfg)
    seed = _find_resumed(cfg, args.resume)
    if seed is not None and seed != cfg.randomness.seed:
        # The order of the data and the crops follow from it, and whatever else the config computes from it.
        _print_once(f"resuming with the checkpoint's seed {seed} instead of {cfg.randomness.seed}")
        args.seed = seed
        return train(args)
    if cfg.get("record"):
        cfg.record.update(config=str(cfg.filename), config_sha256=config_sha256(source))

    task, swept = None, []
    if cfg.get("record") and os.environ.get("RANK", "0") == "0":
        options = {**(args.cfg_options or {}), **({} if args.seed is None else {"seed": args.seed})}
        task, swept = task_protocol(args.config, options), swept_paths(args.config, options, cfg)
    processes = int(os.environ["WORLD_SIZE"]) if args.launcher != "none" else 1
    batch = apply_effective_batch(cfg, processes)
    fit_to_device(cfg, args.launcher, _print_once)
    crop_on_device(cfg)
    complete_hooks(cfg)
    match_annotations(cfg, ["train_dataloader", "val_dataloader"])
    use_unrounded_metrics(cfg)
    join(cfg, args.launcher)
    precision = settle_precision(cfg)
    make_reproducible(cfg, cfg.randomness.seed, batch.accumulation)
    runner = AdPERunner.from_cfg(_named(cfg))
    runner.source = source, swept, task
    for line in filter(None, (str(batch), precision)):
        runner.logger.info(line)
    if runner.rank == 0:
        # As it was before this number of processes and this device were worked in, for running it again.
        source.dump(os.path.join(runner.work_dir, Path(source.filename).name))
    runner.train()
    return runner


def test(args: argparse.Namespace) -> dict[str, float]:
    """Evaluate the checkpoint of the command line. Returns the metrics."""
    cfg = _config(args)
    for name in ("test_dataloader", "test_cfg", "test_evaluator", "model"):
        if cfg.get(name) is None:
            raise UserError(f"config {cfg.filename} has no {name}, which testing needs.")
    # Found unreadable before the model and the data are built.
    trained = classes_of_checkpoint(read_training_checkpoint(args.checkpoint))
    cfg.load_from, cfg.resume = args.checkpoint, False
    settle_start(cfg, args.checkpoint)
    # The weights come from the checkpoint that is tested.
    for node in (cfg.model, cfg.model.get("backbone") or {}):
        node.pop("init_cfg", None)
    check_files(cfg, ["test_dataloader"])
    match_annotations(cfg, ["test_dataloader"], trained or None)
    cfg.setdefault("default_hooks", ConfigDict()).setdefault("label_guard", ConfigDict(type="AdPELabelGuard"))
    as_read = copy.deepcopy(cfg)
    if args.tta:
        use_tta(cfg)
    use_unrounded_metrics(cfg)
    fit_to_device(cfg, args.launcher, _print_once)
    join(cfg, args.launcher)
    if args.out and Path(args.out).suffix not in (".json", ".pkl"):
        raise UserError(f"--out {args.out}: expected a name ending in .json (metrics) or .pkl (predictions).")
    if args.out and args.out.endswith(".pkl"):
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        dump = "DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
        cfg.test_evaluator = [*evaluators, {"type": dump, "out_file_path": args.out}]
    if args.show_dir:
        _show(cfg, args.show_dir)
    runner = AdPERunner.from_cfg(_named(cfg))
    runner.strict_load = True
    metrics = runner.test()
    if args.tta and runner.rank == 0:
        files, added = record_multi_scale(as_read, runner.test_dataloader.dataset, args.checkpoint, metrics)
        told = ", ".join(f"{name} {value:.2f}" for name, value in added.items())
        if files:
            _print_once(f"{told}: recorded in {', '.join(map(str, files))}.")
        elif added:
            _print_once(
                f"{told}: not recorded, for no record of the run that wrote {args.checkpoint} stands beside it."
            )
    if args.out and args.out.endswith(".json") and runner.rank == 0:
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps({name: float(value) for name, value in metrics.items()}, indent=1) + "\n")
    return metrics


def _config(args: argparse.Namespace) -> Config:
    options = dict(args.cfg_options or {})
    seed = getattr(args, "seed", None)
    check_command_line(options, {"seed": seed, "randomness.seed": seed, "work_dir": args.work_dir})
    if seed is not None:
        options["seed"] = seed
    cfg = read_config(args.config, options)
    check_runner(cfg)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--work-dir {cfg.work_dir} cannot be made: {error.strerror}.") from None
    if not os.access(cfg.work_dir, os.W_OK):
        raise UserError(f"--work-dir {cfg.work_dir} is not writable.")
    return cfg


def _find_resumed(cfg: Config, resume: str | None) -> int | None:
    """Set the checkpoint to resume from, if any. Returns the seed of the run it comes from."""
    if resume is None:
        if not cfg.get("resume"):
            earlier = sorted(
                path.name for kind in ("epoch", "iter") for path in Path(cfg.work_dir).glob(f"{kind}_*.pth")
            )
            if earlier:
                _print_once(
                    f"{cfg.work_dir} already holds {earlier[-1]} of another training, whose checkpoints this one "
                    "replaces: --resume goes on from it, another --work-dir keeps it."
                )
            return None
        resume = cfg.get("load_from") or "auto"
    if resume == "auto":
        found = latest_checkpoint(cfg.work_dir)
        if found is None:
            _print_once(f"{cfg.work_dir} holds no checkpoint to resume from: starting at the beginning.")
            cfg.resume = False
            return None
        path, meta = found
    else:
        path, meta = Path(resume), read_training_checkpoint(resume)["meta"]
    if "iter" not in meta:
        raise UserError(f"{path} holds weights only; to start from them use --cfg-options load_from={path}.")
    if cfg.get("load_from") not in (None, str(path), resume):
        _print_once(f"resuming from {path}: load_from = {cfg.load_from} is where it started, and is not read again")
    cfg.load_from, cfg.resume = str(path), True
    if cfg.get("precision") == "auto":
        # Not measured anew: a resumed run gives what an uninterrupted one gives.
        cfg.precision = meta.get("precision", "float32")
        request_precision(cfg)
    return meta.get("seed")


def _show(cfg: Config, folder: str) -> None:
    """Let the scope's visualization hook draw every prediction into `folder`."""
    hook = {"mmseg": "SegVisualizationHook", "mmdet": "DetVisualizationHook"}.get(cfg.get("default_scope", ""))
    if hook is None:
        raise UserError("--show-dir draws segmentations (default_scope mmseg) and detections (mmdet) only.")
    cfg.default_hooks.visualization = {"type": hook, "draw": True, "interval": 1}
    if hook == "DetVisualizationHook":
        cfg.default_hooks.visualization.test_out_dir = os.path.abspath(folder)
    visualizer = "SegLocalVisualizer" if hook.startswith("Seg") else "DetLocalVisualizer"
    backends = [{"type": "LocalVisBackend"}]
    cfg.visualizer = {"type": visualizer, "vis_backends": backends, "save_dir": folder}
