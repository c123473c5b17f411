"""OpenMMLab's ``metafile.yml`` and ``model-index.yml`` from records: one model a run that has a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adpe.errors import UserError
from adpe.files import atomic_write
from adpe.leaderboard.records import iterations_of
from adpe.leaderboard.tasks import TASKS, is_defined, metric_of, short_names

_COLLECTION = {
    "Name": "AdPE",
    "Metadata": {"Architecture": ["Vision Transformer", "Adversarial Positional Embedding"]},
    "Paper": {
        "Title": "AdPE: Adversarial Positional Embeddings for Pretraining Vision Transformers via MAE+",
        "URL": "https://arxiv.org/abs/2303.07598",
    },
    "README": "README.md",
}


def write_metafiles(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write ``metafile.yml`` and the ``model-index.yml`` that imports it.

    Raises:
        UserError: if no record has a checkpoint.
    """
    models = [_model(record) for record in records if record.get("checkpoint_sha256")]
    if not models:
        raise UserError("no record names a checkpoint with its hash: there is no model to list.")
    names = [model["Name"] for model in models]
    for index, model in enumerate(models):
        if names.count(names[index]) > 1:
            model["Name"] += f"_{model['Metadata']['Checkpoint SHA256'][:8]}"
    contents = {
        "metafile.yml": {"Collections": [_COLLECTION], "Models": models},
        "model-index.yml": {"Import": ["metafile.yml"]},
    }
    for name, content in contents.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
    return [folder / name for name in contents]


def _model(record: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        "Training Data": record["dataset"],
        "Iterations": iterations_of(record),
        "Pretraining Epochs": record.get("pretraining_epochs"),
        "Batch Size": record.get("effective_batch"),
        "Precision": record.get("precision"),
        "Seed": record["seed"],
        "Training Resources": _resources(record.get("hardware") or {}),
        "Training Time (h)": _rounded(record.get("wall_time_s"), 3600),
        "Training Memory (GB)": _rounded(record.get("peak_memory_bytes"), 2**30),
        "Commit": record.get("commit"),
        "Config SHA256": record.get("config_sha256"),
        "Checkpoint SHA256": record["checkpoint_sha256"],
    }
    metrics = {
        metric_of(name).label: round(float(value) * metric_of(name).scale, 4)
        for name, value in short_names(record["metrics"]).items()
        if is_defined(name, value)
    }
    model: dict[str, Any] = {
        "Name": re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{record.get('suite') or 'run'}_{record['run']}"),
        "In Collection": "AdPE",
        "Config": record["config"],
        "Metadata": {name: value for name, value in metadata.items() if value is not None},
    }
    if metrics:
        model["Results"] = [
            {"Task": TASKS[record["task"]].model_index, "Dataset": record["dataset"], "Metrics": metrics}
        ]
    model["Weights"] = record["checkpoint"]
    return model


def _resources(hardware: Mapping[str, Any]) -> str | None:
    return f"{hardware.get('processes', 1)}x {hardware['device']}" if hardware.get("device") else None


def _rounded(value: Any, unit: float) -> float | None:
    return None if value is None else round(float(value) / unit, 2)
