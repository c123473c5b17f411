"""Runs an evaluation on frozen features of a config: seed, data, encoder, features computed once, record."""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import set_random_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from adpe.engine.config import check_files, read_config
from adpe.engine.hooks.recording import Run, config_sha256, make_record, write_record
from adpe.engine.resolved_protocol import compared, describe_evaluation, swept_paths, task_protocol
from adpe.engine.resolved_protocol.data import data_description
from adpe.engine.runner import AdPERunner
from adpe.errors import EXIT_MISTAKE, UserError, print_error
from adpe.evaluations.base import Result, Subject, build_evaluation, pooled_features, weights_digest
from adpe.files import atomic_write
from adpe.garbage import collect_as_usual
from adpe.leaderboard.records import read_records
from adpe.leaderboard.tasks import main_metrics, metric_of, show_metric
from adpe.option_values import OptionAction

_LOADERS = "_dataloader"
_MINUTE = 60.0
_RUNS = itertools.count()


def evaluate(cfg: Config, args: argparse.Namespace) -> dict[str, float]:
    """Evaluate the encoder of a config that has an ``evaluation``, and write its record.

    Features are kept in the work directory, named by encoder and images, so that a run that was stopped goes on from
    them; with the same seed it ends in the same numbers.

    Returns:
        the metrics.

    Raises:
        UserError: for what does not fit together in the config, the data or the encoder.
    """
    if args.launcher != "none":
        raise UserError(
            f"{cfg.filename} evaluates frozen features, in one process: python tools/train.py {args.config}"
        )
    if getattr(args, "amp", None):
        raise UserError("--amp is for trainings: features are computed in float32, so that they can be compared.")
    for name in ("model", "train_dataloader", "val_dataloader"):
        if not isinstance(cfg.get(name), dict):
            raise UserError(f"config {cfg.filename} has no dict {name}, which an evaluation needs.")
    began = time.time()
    seed = cfg.randomness.seed if args.seed is None else args.seed
    names = [name.removesuffix(_LOADERS) for name in cfg if name.endswith(_LOADERS) and cfg[name]]
    check_files(cfg, [f"{name}{_LOADERS}" for name in names])
    cfg.randomness = ConfigDict(seed=seed)
    if cfg.get("record"):
        cfg.record.update(config=str(cfg.filename), config_sha256=config_sha256(cfg))
    init_default_scope(cfg.get("default_scope", "mmengine"))
    evaluation = build_evaluation(cfg.evaluation)
    options = {**(args.cfg_options or {}), **({} if args.seed is None else {"seed": args.seed})}
    task, swept = task_protocol(args.config, options), swept_paths(args.config, options, cfg)

    logger = MMLogger.get_instance(f"evaluation_{next(_RUNS)}", log_file=str(Path(cfg.work_dir, "evaluation.log")))
    data = {name: DATASETS.build(copy.deepcopy(cfg[f"{name}{_LOADERS}"].dataset)) for name in names}
    _match_classes(data)
    evaluation.check(data)
    set_random_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    loaders = {name: _loader(cfg[f"{name}{_LOADERS}"], dataset) for name, dataset in data.items()}
    described = {name: data_description(dataset) for name, dataset in data.items()}
    subject = Subject(model, loaders, device, seed, Path(cfg.work_dir), logger.info, lambda name: (_none(), _none()))

    @cache
    def features(name: str) -> tuple[Tensor, Tensor]:
        told = described[name] or {}
        # What is built of them, not only weights and files: saliency, pooling, positions, borders.
        options = {key: value for key, value in cfg.model.items() if key != "init_cfg"}
        built = hashlib.sha256(repr((options, cfg[name + _LOADERS].dataset)).encode()).hexdigest()[:16]
        key = f"{weights_digest(model)}-{told.get('names')}-{told.get('contents')}-{built}"
        return _cached(subject, name, key)

    collect_as_usual()
    result = evaluation.run(replace(subject, features=features))
    _write(cfg, result)
    seconds = time.time() - began
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    logger.info(f"Finished: {evaluation.head} in {seconds:.0f} s; {metrics}; {cfg.work_dir}")
    if cfg.get("record"):
        own = describe_evaluation(cfg, model, evaluation, swept)
        own["data"] = described
        per_image = str(Path(cfg.work_dir, "per_image.npz")) if result.per_image else None
        run = Run(cfg, cfg, cfg.work_dir, seed, result.metrics, seconds, compared(own, task), per_image)
        write_record(make_record(run), cfg.work_dir, cfg.get("record_file"))
    return result.metrics


def _none() -> Tensor:
    return torch.empty(0)


def _loader(cfg: Any, dataset: Any) -> DataLoader:
    """In the order of the data, whatever the config's sampler says."""
    own = {"sampler": {"type": "DefaultSampler", "shuffle": False}, "collate_fn": {"type": "default_collate"}}
    kept = {name: value for name, value in cfg.items() if name != "batch_sampler"}
    options = {"batch_size": 256, "num_workers": 0, **kept, **own, "drop_last": False, "dataset": dataset}
    return AdPERunner.build_dataloader(options)


def _match_classes(data: dict[str, Any]) -> None:
    """Labels mean the training images' classes in every data set, by name."""
    train = data["train"]
    for name, dataset in data.items():
        if name == "train" or not hasattr(dataset, "match_classes"):
            continue
        if dataset.classes != tuple(train.classes):
            dataset.match_classes(train.classes)


def _cached(subject: Subject, name: str, key: str) -> tuple[Tensor, Tensor]:
    """Features and labels of ``<work_dir>/features_<name>.safetensors`` if it is of `key`; else computed and kept."""
    path = subject.work_dir / f"features_{name}.safetensors"
    with suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("key") == key:
            subject.log(f"features of {name} read from {path}")
            return file.get_tensor("features"), file.get_tensor("labels")
    began = time.time()
    features, labels = pooled_features(subject.model, _told(subject, name))
    subject.log(f"features of {len(features)} images of {name} in {time.time() - began:.1f} s")
    with atomic_write(path) as temporary:
        save_file({"features": features, "labels": labels}, temporary, {"key": key})
    return features, labels


def _told(subject: Subject, name: str) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The batches of a loader, with a line per minute."""
    told = time.time()
    for number, batch in enumerate(subject.batches(name), start=1):
        yield batch
        if time.time() - told > _MINUTE:
            told = time.time()
            subject.log(f"features of {name}: batch {number} of {len(subject.loaders[name])}")


def _write(cfg: Config, result: Result) -> None:
    """Per-image arrays and pictures into the work directory."""
    import numpy as np

    folder = Path(cfg.work_dir)
    if result.per_image:
        with atomic_write(folder / "per_image.npz") as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = dict(result.per_image)
            np.savez_compressed(file, **arrays)
    for name, figure in result.figures.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight")


def evaluate_main(arguments: list[str] | None = None) -> int:
    """Command line of `tools/evaluate.py`: one run of the config for each encoder, then a table. Returns the status."""
    from adpe.engine.launch import train_main

    parser = argparse.ArgumentParser(description="Evaluate frozen encoders and rank them in one table.")
    parser.add_argument("config", help="a config with an `evaluation`; it is Python, and is executed")
    parser.add_argument("encoders", nargs="*", help="exported encoders, checkpoints of a training, or files of other "
                        "libraries; none: the config's encoder at random initialisation")  # fmt: skip
    parser.add_argument("--work-dir", default="work_dirs/evaluations", help="a folder per encoder is made in it")
    parser.add_argument("--seed", type=int, default=0, help="of what an evaluation draws")
    parser.add_argument("--cfg-options", nargs="+", action=OptionAction, metavar="KEY=VALUE", help="change the config")
    args = parser.parse_args(arguments)
    try:
        if not read_config(args.config).get("evaluation"):
            raise UserError(f"{args.config} has no evaluation: python tools/train.py {args.config} trains it.")
    except UserError as error:
        print_error(error)
        return EXIT_MISTAKE
    rows: list[tuple[str, dict[str, float]]] = []
    task = ""
    folders: set[str] = set()
    for encoder in args.encoders or [None]:
        name = _folder_name(encoder, folders)
        work_dir = Path(args.work_dir, Path(args.config).stem, name)
        options = {**(args.cfg_options or {}), **({"pretrained": encoder} if encoder else {})}
        told = [f"{key}={value!r}" for key, value in options.items()]
        command = [args.config, "--work-dir", str(work_dir), "--seed", str(args.seed)]
        status = train_main([*command, *(["--cfg-options", *told] if told else [])])
        if status:
            return status
        records, _ = read_records(work_dir / "record.jsonl")
        task = records[-1]["task"]
        rows.append((encoder or "random initialisation", records[-1]["metrics"]))
    print_table(rows, task)
    return 0


def _folder_name(encoder: str | None, taken: set[str]) -> str:
    """A folder for an encoder: the last two parts of its path, numbered if need be."""
    name = "-".join(Path(encoder).with_suffix("").parts[-2:]).strip("./") if encoder else "random"
    number = 1
    while f"{name}{'' if number == 1 else number}" in taken:
        number += 1
    taken.add(f"{name}{'' if number == 1 else number}")
    return f"{name}{'' if number == 1 else number}"


def print_table(rows: list[tuple[str, dict[str, float]]], task: str) -> None:
    """Encoders and their metrics, the best by the task's first metric first; a row a metric where they are many."""
    from rich.console import Console
    from rich.table import Table

    found = [name for _, metrics in rows for name in metrics]
    names = list(dict.fromkeys([*main_metrics(task, found), *found]))
    first = metric_of(names[0])
    ranked = sorted(rows, key=lambda row: row[1].get(names[0], float("nan")), reverse=first.higher_is_better)
    labels = [f"{metric_of(name).label} {metric_of(name).unit}".strip() for name in names]
    cells = [[show_metric(name, metrics.get(name)) for name in names] for _, metrics in ranked]
    encoders = [encoder for encoder, _ in ranked]
    if len(names) > 6:
        table = Table("", *encoders)
        for label, *values in zip(labels, *cells, strict=True):
            table.add_row(label, *values)
    else:
        table = Table("encoder", *labels)
        for encoder, values in zip(encoders, cells, strict=True):
            table.add_row(encoder, *values)
    Console().print(table)
