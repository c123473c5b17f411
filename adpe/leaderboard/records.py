"""One JSON line per finished run: what ran, on what, and what came out. Needs the standard library alone."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adpe.errors import UserError
from adpe.leaderboard.tasks import TASKS
from adpe.leaderboard.text import without_controls

SCHEMA = 1
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "run": str,
    "method": str,
    "task": str,
    "dataset": str,
    "seed": int,
    "metrics": dict,
    "config": str,
    "time": str,
}
# What tables, page and claims read besides. A fingerprint is text, of records before protocol version 2 a mapping.
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "suite": str, "start": str, "sweep": str, "fingerprint": (str, dict), "task_fingerprint": str, "protocol": dict,
    "own": dict, "pretrained_from": dict, "hardware": dict, "per_image": str, "checkpoint": str, "effective_batch": int,
    "wall_time_s": (int, float), "pretraining_epochs": (int, float), "author_verified": bool,
}  # fmt: skip
_FILES = ("checkpoint", "per_image")
# What tells the runs of a file apart: a record that agrees in all of these is the same one written again.
_IDENTITY = (
    "suite", "run", "method", "task", "dataset", "start", "sweep", "seed", "config_sha256", "checkpoint_sha256",
    "fingerprint",
)  # fmt: skip


def append_record(path: str | Path, record: dict[str, Any]) -> bool:
    """Append `record` to the file of records `path`, as one line, whole or not at all for other writers and readers.

    The file is locked from the look for the same record to the end of the write, so that two processes neither lose
    nor duplicate one. A line left truncated by an earlier crash is closed first, so that it spoils nothing but itself.
    Numbers that JSON does not have (NaN, infinity) become null, and control characters are left out. A protocol that
    the file holds already, by its fingerprint, is not repeated; `read_records` gives it to every record that has it.

    Returns:
        False if the same record was there already, and nothing was written.

    Raises:
        ValueError: if the record is not valid.
        OSError: if it cannot be written.
    """
    fault = record_fault(record)
    if fault:
        raise ValueError(f"record for {path}: {fault}")
    path, record = Path(path), without_controls(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        known = read_records(path)[0]
        if any(_is_same(one, record) for one in known):
            return False
        if any(one.get("protocol") and one.get("fingerprint") == record.get("fingerprint") for one in known):
            record = {name: value for name, value in record.items() if name != "protocol"}
        line = json.dumps(_finite(record), sort_keys=True, allow_nan=False).encode() + b"\n"
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(file, line) != len(line):
            os.ftruncate(file, size)
            raise OSError(f"no room for a record in {path}")
        os.fsync(file)
        return True
    finally:
        os.close(file)


def read_records(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a file of records.

    Returns:
        the valid records in order of the file, their texts without control characters, which would steer a terminal,
        and without the records that a later one of their run repeats with more metrics; and for each line that is no
        record a sentence ``path:line: what is wrong``.
    """
    records, faults = [], []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            truncated = "" if line.endswith(b"\n") else ", truncated while it was written"
            faults.append(without_controls(f"{path}:{number}: not a JSON line{truncated}; skipped"))
            continue
        # JSON writes control characters below 0x80 as escapes.
        if b"\\" in line or not line.isascii() or b"\x7f" in line:
            record = without_controls(record)
        fault = record_fault(record)
        if fault:
            faults.append(without_controls(f"{path}:{number}: {fault}; skipped"))
        else:
            records.append(record)
    share_protocols(records)
    return _without_completed(records), faults


def share_protocols(records: Iterable[dict[str, Any]]) -> None:
    """Give every record the resolved protocol that another one of the same fingerprint carries, in place."""
    records = list(records)
    known = {one["fingerprint"]: one["protocol"] for one in records if one.get("protocol") and _named(one)}
    for record in records:
        if not record.get("protocol") and _named(record) and record["fingerprint"] in known:
            record["protocol"] = known[record["fingerprint"]]


def record_fault(record: Any) -> str | None:
    """What is wrong with a record, or None."""
    if not isinstance(record, dict):
        return "not a JSON object"
    if record.get("schema") != SCHEMA:
        return f"schema is {record.get('schema')!r} instead of {SCHEMA}"
    for name, kind in _REQUIRED.items():
        if not isinstance(record.get(name), kind) or isinstance(record.get(name), bool):
            return f"{name} is {record.get(name)!r}, which is not of the expected type"
    if record["task"] not in TASKS:
        return f"task is {record['task']!r} instead of one of {', '.join(TASKS)}"
    for name, kind in _OPTIONAL.items():
        if record.get(name) is not None and not isinstance(record[name], kind):
            return f"{name} is {record[name]!r:.60}, which is not of the expected type"
    for name, value in record["metrics"].items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            return f"metric {name} is {value!r} instead of a number"
    return None


def collect(folder: Path, target: Path) -> tuple[int, int, list[str]]:
    """Append the records of `folder` to `target`, with the paths of files told from `folder`.

    Pretrainings that several suites share are left to their own folder beside it, so that they are collected once.

    Args:
        folder: of a suite's runs, with its ``records.jsonl``.
        target: file of records; a record that it has already stays as it is.

    Returns:
        records added, records of the folder, and what is wrong with the other lines of its file.

    Raises:
        UserError: if the folder has no file of records.
    """
    source = folder / "records.jsonl"
    if not source.is_file():
        raise UserError(f"{source} does not exist: expected the folder of a suite, such as work_dirs/suites/small.")
    found, faults = read_records(source)
    records = [
        record
        for record in found
        if record.get("suite") in (None, folder.name)
        or not (folder.parent / str(record["suite"]) / "records.jsonl").is_file()
    ]
    added = 0
    for record in records:
        paths = {name: _told_from(folder, record[name]) for name in _FILES if record.get(name)}
        added += append_record(target, {**record, **paths})
    return added, len(records), faults


def _told_from(folder: Path, path: str) -> str:
    """`path` relative to `folder`; of a file elsewhere, which is another machine's business, the name alone."""
    file = Path(path)
    absolute = file if file.is_absolute() else Path.cwd() / file
    return str(absolute.relative_to(folder.resolve())) if absolute.is_relative_to(folder.resolve()) else file.name


def iterations_of(record: Mapping[str, Any]) -> int | None:
    """Optimizer steps of a run; records from before protocol version 2 have them in their fingerprint."""
    old = record.get("fingerprint")
    found = record.get("iterations") or (old.get("iterations") if isinstance(old, dict) else None)
    return found if isinstance(found, int) else None


def file_sha256(path: str | Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _named(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("fingerprint"), str)


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return _is_same_run(one, other) and one["metrics"].keys() == other["metrics"].keys()


def _is_same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in _IDENTITY)


def _without_completed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records but for those whose run has a later one with the same metrics and more, as a test with --tta adds."""
    by_run: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        by_run.setdefault((record["run"], record["seed"], record.get("checkpoint_sha256")), []).append(record)
    completed = {
        id(record)
        for members in by_run.values()
        for i, record in enumerate(members)
        for later in members[i + 1 :]
        if _is_same_run(record, later) and record["metrics"].items() < later["metrics"].items()
    }
    return [record for record in records if id(record) not in completed]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
