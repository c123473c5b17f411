"""The resolved protocol of a run: what its numbers depend on, its fingerprint, and how two of them differ in words.

`adpe.engine.resolved_protocol` takes it from the built objects and the resolved config of a run; records carry it, and
tables, page, claims and `compare` read it here. It is a JSON object with

- ``version``: of this description;
- ``facts``: the few values that head a table (encoder, head, crop, schedule, batch);
- ``config``: everything that mmengine's Runner is given, but for what is free;
- ``model``, ``optimizer``: what the built objects hold, defaults of classes included;
- ``data``: number, names and a sample of the contents of the images that were read.

Free are the seed, paths, workers, processes, logging, checkpointing and visualisation: `FREE` and `FREE_TOP` name
them. A record without a protocol of this version was written before it, and is marked so. Needs the standard library
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

VERSION = 2
BEFORE = f"protocol before version {VERSION}"
LOST = "without its protocol, which no record of the fingerprint carries"
# In the place of a value that a sweep sets: the row says it.
SWEPT = "as swept"
# Top-level keys of a config that say where, from what and how often, not what is computed.
FREE_TOP = (
    "work_dir", "resume", "load_from", "launcher", "env_cfg", "randomness", "log_processor", "log_level",
    "visualizer", "experiment_name", "cfg", "default_scope",
    "test_dataloader", "test_cfg", "test_evaluator",  # a record's metrics are those of the validation
    "precision", "activation_checkpointing",  # the optimizer's wrapper says which precision; the numbers are the same
)  # fmt: skip
# Keys and attributes anywhere below.
FREE = (
    "seed", "work_dir", "save_dir", "out_dir", "outfile_prefix", "output_dir", "data_root", "source", "ann_file",
    "img_dir", "cache_dir", "checkpoint", "backend_args", "file_client_args", "num_workers", "persistent_workers",
    "pin_memory", "prefetch_factor", "multiprocessing_context", "val_interval", "val_begin", "dynamic_intervals",
    "init_cfg", "cache", "crop_on",  # samples are the same in every bit
)  # fmt: skip
FREE_HOOKS = (
    "timer", "logger", "checkpoint", "visualization", "record", "runtime_info", "finite_loss",
    "learning_rate_guard", "gradient_guard", "adversary_guard", "evaluation_guard", "label_guard",
)  # fmt: skip
_ABSENT = "absent"
_ORDER = ("facts", "config", "model", "optimizer", "data")


class Change(NamedTuple):
    """One value in which two protocols differ; None where one of them has none."""

    path: str
    first: Any
    second: Any


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that agree if and only if the protocols do."""
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def protocol_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The resolved protocol in a record; None for a record from before version 2."""
    protocol = record.get("protocol")
    return protocol if isinstance(protocol, Mapping) and protocol.get("version") == VERSION else None


def classes_of(record: Mapping[str, Any]) -> int | None:
    """Classes of the validation data, where the record's protocol has them."""
    data = (protocol_of(record) or {}).get("data") or {}
    classes = (data.get("val") or {}).get("classes")
    return classes if isinstance(classes, int) else None


def protocol_key(record: Mapping[str, Any]) -> str:
    """What the records of rows that are ranked together have in common.

    It is the protocol of the task: the run's own, without what the method brings with it (an encoder with relative
    positions, a batch that its authors give for it). Rows that differ in this are told apart by `own_settings`.
    """
    if isinstance(record.get("fingerprint"), str):
        return str(record.get("task_fingerprint") or record["fingerprint"])
    return json.dumps(record.get("fingerprint"), sort_keys=True, default=str)


def own_settings(record: Mapping[str, Any]) -> str | None:
    """What the run's method changes in the protocol of its task, in words; None if nothing."""
    own = record.get("own")
    if not isinstance(own, Mapping) or record.get("fingerprint") == record.get("task_fingerprint"):
        return None
    return words([Change(*change) for change in own.get("changes") or []]) or "settings of its own"


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What heads a table, with the fingerprint; of an old record all that it knows, and that it is old."""
    protocol = protocol_of(record)
    if protocol is not None:
        return {**protocol["facts"], "fingerprint": record.get("task_fingerprint") or record.get("fingerprint")}
    old = record.get("fingerprint")
    if isinstance(old, str):
        return {"fingerprint": record.get("task_fingerprint") or old, "recorded": LOST}
    return {**(old if isinstance(old, Mapping) else {}), "recorded": BEFORE}


def changes(first: Mapping[str, Any], second: Mapping[str, Any], free: Iterable[str] = ()) -> list[Change]:
    """Every value in which two protocols differ, the readable ones first, without what lies below a path of `free`."""
    a, b = _flat(first), _flat(second)
    paths = [*a, *(path for path in b if path not in a)]
    below = tuple(free)
    found = [
        Change(path, a.get(path), b.get(path))
        for path in paths
        if (path not in a or path not in b or a[path] != b[path])
        and not any(path == name or path.startswith(f"{name}.") for name in below)
    ]
    order = {name: index for index, name in enumerate(_ORDER)}
    return sorted(found, key=lambda change: order.get(change.path.partition(".")[0], -1))


def words(found: Sequence[Change], most: int = 6) -> str:
    """Changes as a reader wants them: ``"test_cfg.mode slide against whole"``, what is said twice once."""
    said: dict[tuple[str, str, str], str] = {}
    for change in found:
        first, second = (plain(value) or _ABSENT for value in (change.first, change.second))
        key = (change.path.rpartition(".")[2], first, second)
        said.setdefault(key, f"{_short(change.path)} {first} against {second}")
    texts = list(said.values())
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return "; ".join(texts[:most] + more)


def plain(value: Any) -> str:
    """A JSON value for a reader: ``[112, 112]`` as ``112x112``, mappings without their empty entries."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) for item in value)
        return ("x" if numbers else ", ").join(map(plain, value))
    return "" if value is None else str(value)


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; members of a list of components by their type, so that an inserted one shifts no other."""
    if isinstance(node, Mapping):
        items = list(node.items())
    elif isinstance(node, (list, tuple)) and any(isinstance(item, Mapping) for item in node):
        items, seen = [], dict[str, int]()
        for index, item in enumerate(node):
            kind = str((item.get("type") or item.get("class") or index) if isinstance(item, Mapping) else index)
            seen[kind] = seen.get(kind, 0) + 1
            items.append((kind if seen[kind] == 1 else f"{kind}#{seen[kind]}", item))
    else:
        return {path: list(node) if isinstance(node, tuple) else node}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{path}.{key}" if path else str(key))
    return flat


def _short(path: str) -> str:
    """The last parts of a path, which say what it is: without the section, and at most three."""
    parts = path.split(".")
    parts = parts[1:] if parts[0] in _ORDER and len(parts) > 1 else parts
    return ".".join(parts[-3:])
