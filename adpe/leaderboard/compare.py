"""Two rows of the leaderboard against each other, in words: over seeds, or over images where there is one seed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adpe.errors import UserError
from adpe.files import ROOT
from adpe.leaderboard.paired_images import compare_images
from adpe.leaderboard.records import read_records
from adpe.leaderboard.statistics import Difference, describe_difference, seed_difference
from adpe.leaderboard.tables import plain
from adpe.leaderboard.tasks import MAIN_METRICS, is_defined, metric_of, short_names

Record = Mapping[str, Any]


def row_name(record: Record) -> str:
    """As the leaderboard names the record's row: method with start and point of the sweep in brackets."""
    details = ", ".join(str(value) for value in (record.get("start"), record.get("sweep")) if value)
    return f"{record['method']} ({details})" if details else str(record["method"])


def select(name: str, records: Sequence[Record]) -> list[Record]:
    """Records that a word of the command line means: a run's folder or record file, a run, a row or a method.

    Raises:
        UserError: if it means none, naming what is near.
    """
    path = Path(name)
    if path.is_dir() or path.suffix == ".jsonl":
        file = path / "record.jsonl" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"{name}: there is no {file}; a run writes it at its end.")
        found: list[Record] = list(read_records(file)[0])
        if not found:
            raise UserError(f"{file} holds no valid record.")
        return found
    for key in (lambda record: record.get("run"), row_name, lambda record: record.get("method")):
        found = [record for record in records if key(record) == name]
        if found:
            return found
    known = sorted({row_name(record) for record in records} | {str(record.get("run")) for record in records})
    near = difflib.get_close_matches(name, known, 5, 0.3) or known[:10]
    raise UserError(f"{name!r} names no run and no row of the records; there are: {', '.join(near) or 'none'}.")


def compare(a: Sequence[Record], b: Sequence[Record], *, confidence: float = 0.95, resamples: int = 1000) -> list[str]:
    """Sentences on how `a` differs from `b`, for every task, data set and protocol they share.

    With two seeds or more on both sides the interval is over seeds; with fewer it is a bootstrap over the images of one
    seed of each, if both runs kept per-image statistics.

    Raises:
        UserError: if they have no protocol in common, or a side is two rows.
    """
    first, second = _by_protocol(a), _by_protocol(b)
    common = [key for key in first if key in second]
    if not common:
        protocols = "\n  ".join(_words(key) for key in [*first, *second])
        raise UserError(f"the two have no task, data set and protocol in common:\n  {protocols}")
    lines = []
    for key in common:
        lines.append(f"{_words(key)}:")
        lines += [f"  {sentence}" for sentence in _sentences(first[key], second[key], confidence, resamples)]
    for key in (key for key in [*first, *second] if key not in common):
        lines.append(f"Not compared, only one of the two has it: {_words(key)}.")
    return lines


def _by_protocol(records: Sequence[Record]) -> dict[tuple[str, str, str], dict[int, Record]]:
    groups: dict[tuple[str, str, str], dict[int, Record]] = {}
    rows: dict[tuple[str, str, str], set[str]] = {}
    for record in records:
        protocol = json.dumps(record.get("fingerprint"), sort_keys=True, default=str)
        key = (str(record["task"]), str(record["dataset"]), protocol)
        groups.setdefault(key, {})[record["seed"]] = record  # the last one written counts
        rows.setdefault(key, set()).add(row_name(record))
    for key, names in rows.items():
        if len(names) > 1:
            listed = ", ".join(sorted(names))
            raise UserError(f"one side is several rows of {key[0]} on {key[1]}; choose one: {listed}.")
    return groups


def _words(key: tuple[str, str, str]) -> str:
    protocol = plain(json.loads(key[2]))
    return f"{key[0].capitalize()} on {key[1]} ({protocol or 'protocol not recorded'})"


def _sentences(a: Mapping[int, Record], b: Mapping[int, Record], confidence: float, resamples: int) -> list[str]:
    task = next(iter(a.values()))["task"]
    values = [{seed: short_names(record["metrics"]) for seed, record in side.items()} for side in (a, b)]
    found = list(dict.fromkeys(name for side in values for one in side.values() for name in one))
    names = [name for name in MAIN_METRICS.get(task, ()) if name in found] or found

    def usable(side: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
        found = {seed: one[name] for seed, one in side.items() if is_defined(name, one.get(name))}
        return {seed: float(value) * metric_of(name).scale for seed, value in found.items()}

    lines = []
    titles = [row_name(next(iter(side.values()))) for side in (a, b)]
    for name in names:
        x, y = (usable(side, name) for side in values)
        label = metric_of(name).label
        if not x or not y:
            lines.append(f"{label}: no usable value of {titles[0] if not x else titles[1]}.")
            continue
        difference = seed_difference(x, y, confidence)
        lines.append(_describe(difference, titles, name))
        if difference.low is None:
            lines.append(_over_images(a, b, sorted(set(x) & set(y)) or [], x, y, titles, name, confidence, resamples))
    return lines


def _over_images(
    a: Mapping[int, Record],
    b: Mapping[int, Record],
    seeds: Sequence[int],
    x: Mapping[int, float],
    y: Mapping[int, float],
    titles: Sequence[str],
    name: str,
    confidence: float,
    resamples: int,
) -> str:
    """The bootstrap of one seed of each, the same where there is one."""
    first, second = (a[seeds[0]], b[seeds[0]]) if seeds else (a[min(x)], b[min(y)])
    files = [record.get("per_image") for record in (first, second)]
    if not all(files):
        lacking = " and ".join(str(r.get("run")) for r, file in zip((first, second), files, strict=True) if not file)
        return f"Per-image statistics are not recorded ({lacking}), so there is no bootstrap over images either."
    # A run's paths are relative to where it ran, the root of the repository.
    paths = [path if (path := Path(str(file))).is_file() else ROOT / path for file in files]
    gone = [str(path) for path in paths if not path.is_file()]
    if gone:
        return f"The per-image statistics are no longer there ({', '.join(gone)}): no bootstrap over images."
    differences = compare_images(paths[0], paths[1], [name], confidence=confidence, resamples=resamples)
    if name not in differences:
        return f"The per-image statistics do not hold {metric_of(name).label}."
    seed = f"seed {first['seed']}" + ("" if first["seed"] == second["seed"] else f" against seed {second['seed']}")
    return f"Over the images of {seed}: {_describe(differences[name], titles, name)}"


def _describe(difference: Difference, titles: Sequence[str], name: str) -> str:
    metric, (a, b) = metric_of(name), titles
    return describe_difference(
        difference, a, b, metric.label, higher_is_better=metric.higher_is_better, digits=metric.digits
    )
