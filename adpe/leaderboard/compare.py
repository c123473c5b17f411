"""Two rows of the leaderboard against each other, in words: over seeds, or over images where there is one seed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adpe.errors import UserError
from adpe.files import ROOT
from adpe.leaderboard.protocol import Change, changes, facts, own_settings, plain, protocol_key, protocol_of, words
from adpe.leaderboard.records import read_records
from adpe.leaderboard.tasks import is_defined, main_metrics, metric_of, short_names
from adpe.leaderboard.uncertainty.seeds import ONE_SEED, Difference, describe_difference, seed_difference

Record = Mapping[str, Any]
_Key = tuple[str, str, str]  # task, data set, protocol
_MOST = 20  # differences of two protocols that are told


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
            raise UserError(f"{file} holds no valid record: {'; '.join(read_records(file)[1]) or 'it is empty'}.")
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
    seed of each, if both runs kept per-image statistics. Where they share a task and data set under one protocol each,
    and not the same, they are compared under a mark that says in what the protocols differ.

    Raises:
        UserError: if they have no task and data set in common, or a side is two rows.
    """
    first, second = _by_protocol(a), _by_protocol(b)
    pairs = [(key, key) for key in first if key in second]
    for key in first:
        here, there = ([other for other in side if other[:2] == key[:2]] for side in (first, second))
        if len(here) == len(there) == 1 and here != there:
            pairs.append((here[0], there[0]))
    if not pairs:
        protocols = "\n  ".join(_words(side[key]) for side in (first, second) for key in side)
        raise UserError(f"the two have no task and data set under one protocol each in common:\n  {protocols}")
    lines = []
    for mine_key, their_key in pairs:
        mine, theirs = first[mine_key], second[their_key]
        sentences = _sentences(mine, theirs, confidence, resamples)
        if not sentences:
            lines.append(f"Not compared, neither has a metric: {_words(mine)}.")
            continue
        lines.append(f"{_words(mine)}:")
        lines += [f"  {mark}" for mark in _marks(mine_key == their_key, mine, theirs)]
        lines += [f"  {sentence}" for sentence in sentences]
    compared = {key for pair in pairs for key in pair}
    for key, side in [*first.items(), *second.items()]:
        if key not in compared:
            lines.append(f"Not compared, only one of the two has it: {_words(side)}.")
    return lines


def _by_protocol(records: Sequence[Record]) -> dict[_Key, dict[int, Record]]:
    groups: dict[_Key, dict[int, Record]] = {}
    rows: dict[_Key, set[str]] = {}
    for record in records:
        key = (str(record["task"]), str(record["dataset"]), protocol_key(record))
        groups.setdefault(key, {})[record["seed"]] = record  # the last one written counts
        rows.setdefault(key, set()).add(row_name(record))
    for key, names in rows.items():
        if len(names) > 1:
            listed = ", ".join(sorted(names))
            raise UserError(f"one side is several rows of {key[0]} on {key[1]}; choose one: {listed}.")
    return groups


def _words(side: Mapping[int, Record]) -> str:
    record = next(iter(side.values()))
    return f"{record['task'].capitalize()} on {record['dataset']} ({plain(facts(record)) or 'protocol not recorded'})"


def _marks(same: bool, mine: Mapping[int, Record], theirs: Mapping[int, Record]) -> list[str]:
    """What a reader has to know of the two protocols before the numbers."""
    a, b = next(iter(mine.values())), next(iter(theirs.values()))
    if same:
        own = {row_name(record): own_settings(record) for record in (a, b)}
        return [f"Own settings of {name}: {settings}." for name, settings in own.items() if settings]
    return [f"Different protocols: {words(_changes(a, b), _MOST)}."]


def _changes(a: Record, b: Record) -> list[Change]:
    first, second = protocol_of(a), protocol_of(b)
    return changes(first, second) if first is not None and second is not None else changes(facts(a), facts(b))


def _sentences(a: Mapping[int, Record], b: Mapping[int, Record], confidence: float, resamples: int) -> list[str]:
    task = next(iter(a.values()))["task"]
    values = [{seed: short_names(record["metrics"]) for seed, record in side.items()} for side in (a, b)]
    found = list(dict.fromkeys(name for side in values for one in side.values() for name in one))
    names = main_metrics(task, found)

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
        if difference.reason == ONE_SEED:
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
    from adpe.leaderboard.uncertainty.paired_images import compare_images  # numpy and scipy, which take a second

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
