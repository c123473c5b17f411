"""The model card: its numbers are those of the records, with intervals, and it says where the weights come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_cases import encoder
from scipy import stats

import adpe
from adpe.errors import UserError
from adpe.leaderboard.records import append_record
from adpe.models.specification import specification_of

CONFIG = "a" * 64
IOU = {0: 41.0, 1: 43.5, 2: 42.0}


def record(seed: int, task: str = "segmentation", **values: Any) -> dict[str, Any]:
    metrics = {"mIoU": IOU[seed], "mAcc": 60.0 + seed} if task == "segmentation" else {}
    return {
        "schema": 1, "run": f"{task}-{seed}", "method": "MAE", "task": task, "dataset": "scenes", "seed": seed,
        "metrics": metrics, "config": "configs/demo/linear_segmentation.py", "time": "2026-01-01T00:00:00+00:00",
        "start": "pretrained", "fingerprint": "0123456789abcdef", "pretrained_from": {"config_sha256": CONFIG},
        **values,
    }  # fmt: skip


def shared(folder: Path, records: list[dict[str, Any]], **options: Any) -> str:
    """The text of a card."""
    model = encoder(1)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    said = specification_of(
        model, method="MAE", recipe="configs/pretrain/mae.py", config_sha256=CONFIG, seed=3, epochs=7
    )
    adpe.save_checkpoint(state, folder / "run/encoder.safetensors", specification=said)
    for number, one in enumerate(records):
        append_record(folder / f"{number}.jsonl", one)
    files = [folder / f"{number}.jsonl" for number in range(len(records))]
    out = adpe.save_pretrained(folder / "run/encoder.safetensors", folder / "out", records=files, **options)
    return (out / "README.md").read_text()


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_metrics_stand_with_their_intervals_and_seeds(tmp_path) -> None:
    text = shared(tmp_path, [record(seed) for seed in IOU], name="me/mae", license="cc-by-4.0")
    low, high = stats.t.interval(0.95, 2, loc=42.1666667, scale=stats.sem(list(IOU.values())))
    row = next(line for line in text.splitlines() if line.startswith("| MAE"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"42.17 ({low:.2f} to {high:.2f})"
    assert cells[-2:] == ["0, 1, 2", "0123456789abcdef"]
    data = front_matter(text)
    assert data["license"] == "cc-by-4.0"
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert (entry["name"], result["dataset"]["name"]) == ("mae", "scenes")
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"mIoU": 42.1667}
    assert 'adpe.from_pretrained("me/mae")' in text


def test_what_made_the_weights_is_in_the_card(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    own = record(3, "pretrain", dataset="my photographs", config_sha256=CONFIG, effective_batch=48, start="random")
    append_record(tmp_path / "run/record.jsonl", {**own, "config_sha256": "b" * 64, "dataset": "others"})
    append_record(tmp_path / "run/record.jsonl", own)
    facts = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", shared(tmp_path, []), re.MULTILINE))
    assert facts["data"] == "my photographs"
    assert facts["recipe"] == "configs/pretrain/mae.py"
    assert (facts["method"], facts["seed"], facts["epochs"], facts["images per step"]) == ("MAE", "3", "7", "48")
    assert facts["config (SHA-256)"] == CONFIG


def test_an_unknown_licence_is_not_made_up(tmp_path) -> None:
    assert front_matter(shared(tmp_path, []))["license"] == "unknown"


def test_the_random_baseline_is_in_the_table_and_not_a_result_of_the_model(tmp_path) -> None:
    baseline = {"method": "random", "start": "random", "pretrained_from": None, "run": "random"}
    text = shared(tmp_path, [record(0), record(1, **baseline, metrics={"mIoU": 20.0})])
    assert "| 20.00 |" in text
    values = [m["value"] for r in front_matter(text)["model-index"][0]["results"] for m in r["metrics"]]
    assert values == [41.0]


def test_records_of_another_encoder_are_refused(tmp_path) -> None:
    other = record(0, run="of_another", pretrained_from={"config_sha256": "b" * 64})
    with pytest.raises(UserError, match="of_another"):
        shared(tmp_path, [other])
    assert not (tmp_path / "out").exists()


def test_damaged_records_are_refused(tmp_path) -> None:
    (tmp_path / "damaged.jsonl").write_text(json.dumps(record(0))[:-5])
    model = encoder(1)
    with pytest.raises(UserError, match=r"damaged\.jsonl:1"):
        adpe.save_pretrained(model, tmp_path / "out", records=[tmp_path / "damaged.jsonl"])
