"""Rows from papers and repositories: YAML lists under `benchmarks/published/`, checked before they are shown.

An entry names its method, task, data set, protocol, metrics and source, for example::

    - id: mae-vitb-ade20k
      method: MAE
      backbone: ViT-B/16
      pretraining: {data: ImageNet-1K, epochs: 1600}
      task: segmentation
      dataset: ADE20K
      protocol: {head: UperNet, crop: 512, schedule: 160k iterations, batch: 16, scales: single}
      extra_data: none
      metrics: {mIoU: 48.1}
      kind: published
      source: He et al., CVPR 2022, table 5

What the source does not say is null; only head and data must be known, if by "not stated".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpe.errors import UserError, require
from adpe.files import ROOT
from adpe.leaderboard.tasks import TASKS
from adpe.leaderboard.text import without_controls

FOLDER = ROOT / "benchmarks" / "published"
# published: printed in the source. implied: calculated from what the source prints. quoted: printed in a third place.
KINDS = ("published", "implied", "quoted")
_TEXT = ("method", "backbone", "task", "dataset", "kind", "source", "extra_data")
_MAPPINGS = {
    "pretraining": ("data", "epochs"),
    "protocol": ("head", "crop", "schedule", "batch", "scales"),
    "metrics": (),
}
_OPTIONAL = ("id", "note")


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file by the safe loader: tags that would make Python objects are refused.

    Raises:
        UserError: naming the file and line, if it cannot be read or is not YAML.
    """
    yaml = require("yaml", "requirements/runtime.txt")  # tables of records alone need the standard library
    try:
        # libyaml's safe loader, where PyYAML was built with it, is several times faster.
        base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

        class Loader(base):  # type: ignore[misc, valid-type]
            def construct_mapping(self, node: Any, deep: bool = False) -> Any:
                """As YAML's, but a key that stands twice is an error: the first value would be lost."""
                seen = set()
                for key, _ in node.value:
                    if not isinstance(key.value, str):
                        continue  # no name; what reads the content says so
                    if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                        raise yaml.constructor.ConstructorError(problem=f"key {key.value!r} stands twice",
                                                                problem_mark=key.start_mark)  # fmt: skip
                    seen.add(key.value)
                return super().construct_mapping(node, deep)

        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # the loader's own, and whatever int, float and date raise on what is tagged as such
        reason = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        if "could not determine a constructor" in str(reason):
            reason = f"{reason}; only plain values are read, nothing is executed"
        raise UserError(f"{path}{where}: not valid YAML: {reason}") from None


def read_published(directory: str | Path = FOLDER) -> list[dict[str, Any]]:
    """Entries of every ``*.yaml`` in `directory`, metrics in percent points as papers print them.

    Raises:
        UserError: naming the file and entry, for a file that is not a list of mappings, a key that is missing, empty or
            unknown, a kind outside `KINDS`, a metric that is not a finite number, or a duplicate.
    """
    entries: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for path in sorted(Path(directory).glob("*.yaml")):
        content = without_controls(read_yaml(path))
        if not isinstance(content, list):
            raise UserError(f"{path}: expected a list of rows, found {type(content).__name__}.")
        for number, entry in enumerate(content, start=1):
            where = f"{path}, row {number}"
            _check(entry, where)
            identity = str([entry[key] for key in ("method", "backbone", "task", "dataset")])
            identity += str([sorted(entry[key].items()) for key in ("pretraining", "protocol")])
            if identity in seen:
                raise UserError(f"{where}: the same method and protocol as {seen[identity]}; keep one of them.")
            seen[identity] = where
            name = f"id {entry['id']}" if "id" in entry else ""
            if name in seen:
                raise UserError(f"{where}: {name!r} is that of {seen[name]}.")
            if name:
                seen[name] = where
            entries.append(entry)
    return entries


def _check(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: expected a mapping, found {type(entry).__name__}.")
    known = (*_TEXT, *_MAPPINGS, *_OPTIONAL)
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(known)}.")
    texts = (*_TEXT, *(key for key in _OPTIONAL if key in entry))
    for keys, kind, word in ((texts, str, "text"), (tuple(_MAPPINGS), Mapping, "a mapping")):
        for key in keys:
            if not isinstance(entry.get(key), kind) or not entry[key]:
                raise UserError(f"{where}: {key!r} must be {word} and not empty, found {entry.get(key)!r}.")
    for key, names in _MAPPINGS.items():
        if names and set(entry[key]) != set(names):
            raise UserError(f"{where}: {key} must have {', '.join(names)}, found {', '.join(map(str, entry[key]))}.")
    for key, name in (("protocol", "head"), ("pretraining", "data")):
        if not isinstance(entry[key][name], str):
            raise UserError(f"{where}: {key}.{name} must be text, found {entry[key][name]!r}.")
    for key, allowed in (("kind", KINDS), ("task", [name for name, task in TASKS.items() if task.published])):
        if entry[key] not in allowed:
            raise UserError(f"{where}: {key} {entry[key]!r} is none of {', '.join(allowed)}.")
    for name, value in entry["metrics"].items():
        if not isinstance(name, str):
            raise UserError(f"{where}: metric {name!r} must be named by text.")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{where}: metric {name} must be a finite number, found {value!r}.")
