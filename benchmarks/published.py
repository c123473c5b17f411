"""Rows from papers and repositories: YAML lists under `benchmarks/published/`, checked before they are shown.

An entry names its method, task, data set, protocol, metrics and source, for example::

    - method: MAE
      backbone: ViT-B/16
      pretraining: {data: ImageNet-1K, epochs: 1600}
      task: segmentation
      dataset: ADE20K
      protocol: {head: UperNet, crop: 512, iterations: 160000, batch: 16, scales: single}
      metrics: {mIoU: 48.1}
      kind: published
      source: He et al., CVPR 2022, table 5
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adpe.errors import UserError

# published: printed in the source. implied: calculated from what the source prints. quoted: printed in a third place.
KINDS = ("published", "implied", "quoted")
_TEXT = ("method", "backbone", "task", "dataset", "kind", "source")
_MAPPINGS = ("pretraining", "protocol", "metrics")
_OPTIONAL = ("extra_data", "note")


def read_published(directory: str | Path) -> list[dict[str, Any]]:
    """Entries of every ``*.yaml`` in `directory`, metrics in percent points as papers print them.

    Raises:
        UserError: naming the file and entry, for a file that is not a list of mappings, a key that is missing, empty or
            unknown, a kind outside `KINDS`, a metric that is not a finite number, or a duplicate.
    """
    entries: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for path in sorted(Path(directory).glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(content, list):
            raise UserError(f"{path}: expected a list of rows, found {type(content).__name__}.")
        for number, entry in enumerate(content, start=1):
            where = f"{path}, row {number}"
            _check(entry, where)
            identity = json.dumps([entry[key] for key in ("method", "backbone", "task", "dataset")])
            identity += json.dumps([entry["pretraining"], entry["protocol"]], sort_keys=True, default=str)
            if identity in seen:
                raise UserError(f"{where}: the same method and protocol as {seen[identity]}; keep one of them.")
            seen[identity] = where
            entries.append(entry)
    return entries


def _check(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: expected a mapping, found {type(entry).__name__}.")
    known = (*_TEXT, *_MAPPINGS, *_OPTIONAL)
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(known)}.")
    for keys, kind, word in ((_TEXT, str, "text"), (_MAPPINGS, Mapping, "a mapping")):
        for key in keys:
            if not isinstance(entry.get(key), kind) or not entry[key]:
                raise UserError(f"{where}: {key!r} must be {word} and not empty, found {entry.get(key)!r}.")
    if entry["kind"] not in KINDS:
        raise UserError(f"{where}: kind {entry['kind']!r} is none of {', '.join(KINDS)}.")
    for name, value in entry["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{where}: metric {name} must be a finite number, found {value!r}.")
