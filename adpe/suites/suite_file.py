"""Suites as YAML files: what is in one, and what is wrong with it.

A suite is data, read by the safe loader; what runs are the configs it names, which are Python.
`adpe.suites.schema` has the keys. For example::

    title: MAE and AdPE on ADE20K
    gpus: 8
    seeds: [0, 1, 2]
    pretraining_seeds: [0]            # one pretraining serves all seeds; without it every seed has its own
    methods:
      - name: AdPE RPE coordinate
        pretraining: configs/pretrain/adpe_rpe_coordinate_vitb_1600e.py
        epochs: 1600
        transfer: {position: relative_interpolated}
    tasks:
      - name: upernet
        config: configs/ade20k_upernet_vitb.py
        sweep: {lr: [5e-5, 1e-4, 2e-4, 3e-4]}
        reported: {lr: 2e-4}          # the point that runs with every seed; the others run with sweep_seeds
        sweep_seeds: [0]
        images: {train: 20210, val: 2000}   # of the data set that the claims are about
      - name: eomt
        config: configs/dense/ade20k_eomt_vitb.py
        seeds: [0]                    # not with every seed of the suite
    budgets:                          # other sizes of the suite: benchmark.py run SUITE --budget short
      short: {seeds: [0], epochs: 100, pretraining: {epochs: 100}, tasks: {upernet: {max_iters: 16000}}, jobs: 2}
    claims:
      - {method: AdPE RPE coordinate, task: upernet, reproduces: adpe-vitb-ade20k, tolerance: {mIoU: 0.5},
         tolerance_source: "..."}
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from adpe.config_names import is_config, known_configs
from adpe.errors import UserError
from adpe.files import ROOT
from adpe.leaderboard.published import read_published, read_yaml
from adpe.leaderboard.tasks import METRICS
from adpe.suites import schema
from adpe.suites.suite import Budget, Claim, Cost, Method, Suite, Task, slug, suite_files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 +._-]*")


def read_suite(name: str | Path) -> Suite:
    """A suite by its name in `benchmarks/suites/` or by its path.

    Raises:
        UserError: naming the file, key and value of what is wrong.
    """
    known = suite_files()
    path = known.get(str(name), Path(name))
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        near = difflib.get_close_matches(str(name), known, 3, 0.4) or [*known]
        raise UserError(f"suite {name} does not exist. There are: {', '.join(near)}; or give the path of a YAML file.")
    content = _mapping(read_yaml(path), str(path), schema.SUITE)
    seeds = _seeds(content.get("seeds"), f"{path}: seeds")
    methods = tuple(_method(item, where) for item, where in _items(content, "methods", path))
    names = [method.name for method in methods]
    tasks = tuple(_task(item, where, seeds, names) for item, where in _items(content, "tasks", path))
    if not methods:
        raise UserError(f"{path}: methods is missing; a suite needs at least one.")
    for kind, names in (("methods", [m.name for m in methods]), ("tasks", [t.name for t in tasks])):
        slugs = [slug(name) for name in names]
        for name in slugs:
            if slugs.count(name) > 1:
                raise UserError(f"{path}: {kind} has {name!r} twice; names must differ in letters and digits.")
    published = read_published() if content.get("claims") or content.get("missing") else []
    rows = {entry["id"]: entry for entry in published if "id" in entry}
    claims = tuple(_claim(item, where, methods, tasks, rows) for item, where in _items(content, "claims", path))
    missing = []
    for item, where in _items(content, "missing", path):
        _mapping(item, where, schema.MISSING)
        missing.append((_choice(item.get("reproduces"), rows, f"{where}: reproduces"), _text(item, "reason", where)))
    gpus = content.get("gpus", 1)
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1:
        raise UserError(f"{path}: gpus must be a positive number, found {gpus!r}.")
    own = content.get("pretraining_seeds")
    return Suite(
        path.stem,
        _text(content, "title", str(path)),
        str(content.get("text", "")).strip(),
        gpus,
        seeds,
        seeds if own is None else _seeds(own, f"{path}: pretraining_seeds"),
        methods,
        tasks,
        claims,
        tuple(missing),
        _data(content.get("data"), f"{path}: data"),
        _name({"name": content["shared_pretraining"]}, str(path)) if content.get("shared_pretraining") else None,
        {
            name: _budget(item, f"{path}: budgets.{name}", tasks)
            for name, item in _mapping(content.get("budgets") or {}, f"{path}: budgets", None).items()
        },
        tuple(_column(item, where, tasks) for item, where in _items(content, "overview", path)),
    )


def _column(item: Any, where: str, tasks: Sequence[Task]) -> tuple[str, str]:
    _mapping(item, where, schema.OVERVIEW)
    task = _choice(item.get("task"), {one.name: one.name for one in tasks}, f"{where}: task")
    return task, _choice(item.get("metric"), {name: name for name in METRICS}, f"{where}: metric")


def _mapping(value: Any, where: str, known: Collection[str] | None) -> dict[str, Any]:
    """A mapping whose keys are among `known`; None allows any."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping, found {type(value).__name__}.")
    for key in value:
        if known is not None and key not in known:
            near = difflib.get_close_matches(str(key), known, 1) or known
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(near)}.")
    return value


def _items(content: Mapping[str, Any], key: str, path: Path) -> list[tuple[Any, str]]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} must be a list, found {type(value).__name__}.")
    return [(item, f"{path}: {key}[{index}]") for index, item in enumerate(value)]


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} must be text and not empty, found {value!r}.")
    return value.strip()


def _name(item: Mapping[str, Any], where: str) -> str:
    name = _text(item, "name", where)
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: name {name!r} may have letters, digits, spaces and + . _ - only.")
    return name


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else []
    if not numbers or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in numbers):
        raise UserError(f"{where} must be a list of seeds such as [0, 1, 2], found {value!r}.")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{where} has a seed twice: {numbers}.")
    return tuple(numbers)


def _config(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.endswith(".py") or not is_config(ROOT / value):
        near = difflib.get_close_matches(str(value), known_configs(), 3, 0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"{where}: config {value!r} does not exist.{hint}")
    return value


def _options(item: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = item.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where}: {key} must map names of config variables to values, found {value!r}.")
    for name, setting in value.items():
        if isinstance(setting, dict):
            raise UserError(f"{where}: {key}.{name} must be a plain value; write nested keys with dots.")
    return value


def _cost(item: Mapping[str, Any], where: str) -> Cost | None:
    if item.get("cost") is None:
        return None
    value = _mapping(item["cost"], f"{where}: cost", schema.COST)
    return Cost(_positive(value.get("gpu_hours"), f"{where}: cost.gpu_hours"), _text(value, "gpu", f"{where}: cost"),
                _text(value, "source", f"{where}: cost"))  # fmt: skip


def _positive(value: Any, where: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number <= 0:
        raise UserError(f"{where} must be a positive number, found {value!r}.")
    return number


def _method(item: Any, where: str) -> Method:
    _mapping(item, where, schema.METHOD)
    if item.get("pretraining") is not None and item.get("checkpoint") is not None:
        raise UserError(f"{where}: pretraining and checkpoint exclude each other.")
    pretraining = item.get("pretraining")
    return Method(
        _name(item, where),
        None if pretraining is None else _config(pretraining, f"{where}: pretraining"),
        None if item.get("epochs") is None else int(_positive(item["epochs"], f"{where}: epochs")),
        None if item.get("checkpoint") is None else _text(item, "checkpoint", where),
        _options(item, "options", where),
        _options(item, "transfer", where),
        _cost(item, where),
    )


def _task(item: Any, where: str, seeds: tuple[int, ...], methods: Sequence[str]) -> Task:
    _mapping(item, where, schema.TASK)
    # YAML 1.1 reads 5e-5 as text.
    sweep = _options(item, "sweep", where)
    values = {}
    for name, points in sweep.items():
        if not isinstance(points, list) or not points:
            raise UserError(f"{where}: sweep.{name} must be a list of numbers, found {points!r}.")
        values[name] = [_positive(point, f"{where}: sweep.{name}") for point in points]
    points = tuple(dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))
    reported = _point(item, "reported", where)
    if (sweep or reported) and reported not in points:
        raise UserError(f"{where}: reported {item.get('reported')!r} is no point of the sweep.")
    chosen = item.get("sweep_seeds")
    sweep_seeds = seeds if chosen is None else _seeds(chosen, f"{where}: sweep_seeds")
    if not set(sweep_seeds) <= set(seeds):
        raise UserError(f"{where}: sweep_seeds {list(sweep_seeds)} are not among the suite's seeds {list(seeds)}.")
    own = () if item.get("seeds") is None else _seeds(item["seeds"], f"{where}: seeds")
    if not set(own) <= set(seeds):
        raise UserError(f"{where}: seeds {list(own)} are not among the suite's seeds {list(seeds)}.")
    return Task(
        _name(item, where),
        _config(item.get("config"), f"{where}: config"),
        _options(item, "options", where),
        points,
        reported,
        sweep_seeds,
        _cost(item, where),
        _images(item, where),
        own,
        tuple(_only(item, "methods", methods, where)),
    )


def _only(item: Mapping[str, Any], key: str, known: Sequence[str], where: str) -> list[str]:
    value = item.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{where}: {key} must be a list, found {value!r}.")
    return [_choice(name, {one: one for one in known}, f"{where}: {key}") for name in value]


def _budget(item: Any, where: str, tasks: Sequence[Task]) -> Budget:
    _mapping(item, where, schema.BUDGET)
    chosen = item.get("tasks")
    if chosen is not None:
        _mapping(chosen, f"{where}: tasks", [task.name for task in tasks])
        chosen = {name: _options(chosen, name, f"{where}: tasks") for name in chosen}
    return Budget(
        () if item.get("seeds") is None else _seeds(item["seeds"], f"{where}: seeds"),
        None if item.get("epochs") is None else int(_positive(item["epochs"], f"{where}: epochs")),
        _options(item, "pretraining", where),
        chosen,
        int(_positive(item.get("jobs", 1), f"{where}: jobs")),
        str(item.get("text", "")).strip(),
    )


def _images(item: Mapping[str, Any], where: str) -> dict[str, int]:
    counts = _mapping(item.get("images") or {}, f"{where}: images", schema.IMAGES)
    return {part: int(_positive(count, f"{where}: images.{part}")) for part, count in counts.items()}


def _point(item: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    return {name: _positive(value, f"{where}: {key}.{name}") for name, value in _options(item, key, where).items()}


def _choice(value: Any, known: Mapping[str, Any], where: str) -> Any:
    if not isinstance(value, str) or value not in known:
        near = difflib.get_close_matches(str(value), known, 3, 0.4) or sorted(known)
        raise UserError(f"{where} {value!r} is unknown; there are {', '.join(near)}.")
    return known[value]


def _claim(
    item: Any, where: str, methods: Sequence[Method], tasks: Sequence[Task], rows: Mapping[str, Mapping[str, Any]]
) -> Claim:
    _mapping(item, where, schema.CLAIM)
    method = _choice(item.get("method"), {m.name: m for m in methods}, f"{where}: method")
    task = _choice(item.get("task"), {t.name: t for t in tasks}, f"{where}: task")
    published = _choice(item.get("reproduces"), rows, f"{where}: reproduces")
    point = _point(item, "at", where)
    if point and point not in task.points:
        raise UserError(f"{where}: at {item['at']!r} is no point of the sweep of {task.name}.")
    given = _mapping(item.get("tolerance"), f"{where}: tolerance", tuple(published["metrics"]))
    if not given:
        raise UserError(f"{where}: tolerance names no metric of {item['reproduces']}.")
    tolerance = {name: _positive(value, f"{where}: tolerance.{name}") for name, value in given.items()}
    return Claim(method.name, task.name, point or task.reported, published, tolerance,
                 _text(item, "tolerance_source", where), item.get("note"))  # fmt: skip


def _data(value: Any, where: str) -> Mapping[str, int] | None:
    if value is None:
        return None
    scenes = _mapping(_mapping(value, where, schema.DATA).get("scenes"), f"{where}.scenes", schema.SCENES)
    return {key: int(_positive(scenes.get(key), f"{where}.scenes.{key}")) for key in schema.SCENES}
