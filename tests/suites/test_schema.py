"""The keys of a suite's file as adpe/suites/schema.py has them: documented as they are, required as they say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from adpe.errors import UserError
from adpe.suites import schema
from adpe.suites.suite_file import read_suite

COST = {"gpu_hours": 2, "gpu": "one", "source": "measured"}
# Every key, so that none is left untried.
FULL: dict[str, Any] = {
    "title": "Everything",
    "text": "All keys.",
    "gpus": 2,
    "seeds": [0, 1],
    "pretraining_seeds": [0],
    "shared_pretraining": "shared",
    "data": {"scenes": {"train": 4, "val": 2, "unlabelled": 8, "size": 48}},
    "methods": [
        {"name": "MAE", "pretraining": "configs/pretrain/mae_vitb_1600e.py", "epochs": 1600, "options": {"lr": 1.0},
         "transfer": {"position": "absolute"}, "cost": COST},
        {"name": "other", "checkpoint": "other.safetensors"},
    ],
    "tasks": [
        {"name": "upernet", "config": "configs/ade20k_upernet_vitb.py", "options": {"max_iters": 10},
         "sweep": {"lr": [1.0, 2.0]}, "reported": {"lr": 1.0}, "sweep_seeds": [0], "cost": COST,
         "seeds": [1], "methods": ["MAE"], "images": {"train": 4, "val": 2}},
    ],
    "budgets": {
        "short": {"seeds": [0], "epochs": 2, "pretraining": {"epochs": 2}, "tasks": {"upernet": {"max_iters": 1}},
                  "jobs": 2, "text": "A short one."},
    },
    "claims": [
        {"method": "MAE", "task": "upernet", "at": {"lr": 2.0}, "reproduces": "mae-vitb-ade20k-mmseg",
         "tolerance": {"mIoU": 1.0}, "tolerance_source": "a thread", "note": "none"},
    ],
    "missing": [{"reproduces": "mae-vitb-ade20k-mmseg", "reason": "no config"}],
    "overview": [{"task": "upernet", "metric": "mIoU"}],
}  # fmt: skip
# The mappings of FULL that each part of the schema is about.
PLACES = {
    "SUITE": (lambda s: [s], schema.SUITE),
    "METHOD": (lambda s: s["methods"], schema.METHOD),
    "TASK": (lambda s: s["tasks"], schema.TASK),
    "BUDGET": (lambda s: list(s["budgets"].values()), schema.BUDGET),
    "CLAIM": (lambda s: s["claims"], schema.CLAIM),
    "MISSING": (lambda s: s["missing"], schema.MISSING),
    "OVERVIEW": (lambda s: s["overview"], schema.OVERVIEW),
    "COST": (lambda s: [s["tasks"][0]["cost"]], schema.COST),
    "IMAGES": (lambda s: [s["tasks"][0]["images"]], schema.IMAGES),
    "DATA": (lambda s: [s["data"]], schema.DATA),
    "SCENES": (lambda s: [s["data"]["scenes"]], schema.SCENES),
}
# Left out together: a point needs its sweep, a claim its method and task, a column its task.
WITH = {"tasks": ["claims", "budgets", "overview"], "sweep": ["reported", "at"], "reported": ["sweep", "at"]}


def read(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "full.yaml"
    path.write_text(yaml.safe_dump(content))
    read_suite(path)


def test_every_key_is_tried(tmp_path: Path):
    read(tmp_path, FULL)
    assert [keys for _, keys in PLACES.values()] == list(schema.SECTIONS.values())
    for place, keys in PLACES.values():
        assert {name for item in place(FULL) for name in item} == set(keys)


CASES = [(part, name) for part, (_, keys) in PLACES.items() for name in keys]


@pytest.mark.parametrize(("part", "name"), CASES, ids=[f"{part}.{name}" for part, name in CASES])
def test_a_key_may_be_left_out_only_if_the_schema_says_so(part: str, name: str, tmp_path: Path):
    place, keys = PLACES[part]
    content = copy.deepcopy(FULL)
    next(item for item in place(content) if name in item).pop(name)
    for other in WITH.get(name, []):
        for item in (content, *content.get("tasks", []), *content.get("claims", [])):
            item.pop(other, None)
    if keys[name].default is None:
        with pytest.raises(UserError, match=name):
            read(tmp_path, content)
    else:
        read(tmp_path, content)


def test_a_point_without_a_sweep_is_refused(tmp_path: Path):
    content = copy.deepcopy(FULL)
    del content["tasks"][0]["sweep"], content["claims"]
    with pytest.raises(UserError, match="reported"):
        read(tmp_path, content)


def test_the_page_is_current():
    """If not: python -m adpe.suites.schema."""
    text = schema.PAGE.read_text(encoding="utf-8")
    assert schema.render(text) == text
    for keys in schema.SECTIONS.values():
        for name, key in keys.items():
            assert f"| `{name}` | {key.value} |" in text
