"""Records are appended whole, and a bad line costs itself alone."""

from __future__ import annotations

import hashlib
import json
import multiprocessing

import pytest
import tiny_training

from adpe.engine.config import read_config
from adpe.engine.hooks.recording import config_sha256
from adpe.engine.launch import train_main
from adpe.leaderboard.protocol import fingerprint
from adpe.leaderboard.records import append_record, read_records, record_fault
from adpe.leaderboard.tasks import TASKS


def record(**changes):
    return {
        "schema": 1, "run": "a-0", "method": "m", "task": "detection", "dataset": "d", "seed": 0,
        "metrics": {"bbox_mAP": 0.5}, "config": "c.py", "time": "2026-01-01T00:00:00+00:00", **changes,
    }  # fmt: skip


def test_round_trip_and_not_a_number_is_null(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    append_record(path, record())
    append_record(path, record(run="b-1", metrics={"mIoU": float("nan"), "mAcc": 3}))
    records, faults = read_records(path)
    assert records == [record(), record(run="b-1", metrics={"mIoU": None, "mAcc": 3})]
    assert faults == []


def test_torn_and_invalid_lines_are_named_and_skipped(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [record(), record(schema=2), [1], record(task="naps"), record(metrics={"mIoU": "high"}), record(seed="0")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\xff{\n\n" + json.dumps(record())[:40])
    records, faults = read_records(path)
    assert records == [record()]
    assert faults == [
        f"{path}:2: schema is 2 instead of 1; skipped",
        f"{path}:3: not a JSON object; skipped",
        f"{path}:4: task is 'naps' instead of one of {', '.join(TASKS)}; skipped",
        f"{path}:5: metric mIoU is 'high' instead of a number; skipped",
        f"{path}:6: seed is '0', which is not of the expected type; skipped",
        f"{path}:7: not a JSON line; skipped",
        f"{path}:9: not a JSON line, truncated while it was written; skipped",
    ]
    # The next record is not swallowed by the torn line.
    append_record(path, record(run="next"))
    records, faults = read_records(path)
    assert [one["run"] for one in records] == ["a-0", "next"] and len(faults) == 7


def test_invalid_records_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="task is 'nap'"):
        append_record(tmp_path / "r.jsonl", record(task="nap"))
    assert not (tmp_path / "r.jsonl").exists()
    assert record_fault(record(seed=True)) == "seed is True, which is not of the expected type"


def write(path, name):
    for number in range(50):
        append_record(path, record(run=f"{name}-{number}", dataset="x" * 20000))


def test_concurrent_writers_lose_and_mix_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    processes = [multiprocessing.get_context("fork").Process(target=write, args=(path, name)) for name in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    records, faults = read_records(path)
    assert faults == []
    assert sorted(one["run"] for one in records) == sorted(f"{n}-{i}" for n in range(2) for i in range(50))


def test_record_of_a_run(tmp_path):
    path = tiny_training.config(tmp_path, iterations=6, interval=3, effective_batch=8, batch_size=4)
    collected = tmp_path / "all.jsonl"
    options = ["--cfg-options", f"record_file={collected}", "record.start=random"]
    assert train_main([str(path), "--work-dir", str(tmp_path / "run"), "--seed", "4", *options]) == 0
    (one,), faults = read_records(tmp_path / "run" / "record.jsonl")
    assert faults == [] and read_records(collected)[0] == [one]
    assert {name: one[name] for name in ("method", "task", "dataset", "start", "suite", "seed", "run")} == {
        "method": "tiny", "task": "pretrain", "dataset": "points", "start": "random", "suite": None, "seed": 4,
        "run": "run-4",
    }  # fmt: skip
    assert one["config"] == str(path) and one["precision"] == "float32" and one["effective_batch"] == 8
    assert one["iterations"] == 6 and one["protocol"]["facts"]["batch"] == 8
    assert one["fingerprint"] == one["task_fingerprint"] == fingerprint(one["protocol"]) and one["own"] is None
    checkpoint = tmp_path / "run" / "iter_12.pth"
    assert one["checkpoint"] == str(checkpoint)
    assert one["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert 0 < one["metrics"]["error"] < 100
    assert one["wall_time_s"] > 0 and one["iterations_per_s"] > 0 and one["peak_memory_bytes"] > 1 << 20
    assert one["versions"]["torch"] and one["hardware"]["processes"] == 1


def test_config_hash_is_of_what_is_computed(tmp_path):
    path = tiny_training.config(tmp_path)
    reference = config_sha256(read_config(path))
    assert config_sha256(read_config(path, {"work_dir": "elsewhere", "randomness.seed": 7})) == reference
    assert config_sha256(read_config(path, {"iterations": 13})) != reference
