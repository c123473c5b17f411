"""Records: two processes that write the same ones, hashes that ignore seeds, and the per-image file of a run."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import tiny_training
import torch

from adpe.engine.config import read_config
from adpe.engine.hooks.recording import config_sha256
from adpe.engine.launch import train_main
from adpe.leaderboard.records import append_record, read_records


def record(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "run": "a-0", "method": "m", "task": "detection", "dataset": "d", "seed": 0,
        "metrics": {"bbox_mAP": 0.5}, "config": "c.py", "time": "2026-01-01T00:00:00+00:00", **changes,
    }  # fmt: skip


def write(path: Path, own: str, written: Any) -> None:
    count = 0
    for number in range(40):
        count += append_record(path, record(run=f"both-{number}", time=own))
        count += append_record(path, record(run=f"{own}-{number}", time=own))
    written.put(count)


def test_two_processes_write_the_same_records_once(tmp_path: Path) -> None:
    path, context = tmp_path / "records.jsonl", multiprocessing.get_context("fork")
    written = context.Queue()
    processes = [context.Process(target=write, args=(path, name, written)) for name in ("x", "y")]
    for process in processes:
        process.start()
    counts = [written.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    records, faults = read_records(path)
    assert faults == [] and sum(counts) == len(records) == 120
    assert len({one["run"] for one in records}) == 120


def test_another_checkpoint_seed_or_point_is_another_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for changes in ({}, {"checkpoint_sha256": "x"}, {"seed": 1}, {"sweep": "lr 0.1"}, {"suite": "s"}):
        assert append_record(path, record(**changes))
        assert not append_record(path, record(**changes, time="later"))
    assert len(read_records(path)[0]) == 5


def test_seeds_and_who_are_not_in_the_hash_of_what_is_computed(tmp_path: Path) -> None:
    path = tiny_training.config(tmp_path, extra="seed = 0\ntrain_dataloader['dataset']['seed'] = seed")
    reference = config_sha256(read_config(path))
    assert config_sha256(read_config(path, {"seed": 7})) == reference
    assert config_sha256(read_config(path, {"record.suite": "s", "record.run": "r"})) == reference
    assert config_sha256(read_config(path, {"optim_wrapper.optimizer.lr": 0.2})) != reference


def test_a_resumed_random_start_is_one(tmp_path: Path) -> None:
    """What it resumes from is its own checkpoint, not where it began; nor need it hold an encoder of ours."""
    extra = "record = dict(method='m', task='pretrain', dataset='d', start='random')"
    path = tiny_training.config(tmp_path, iterations=4, interval=2, extra=extra)
    run = tmp_path / "run"
    assert train_main([str(path), "--work-dir", str(run)]) == 0
    (run / "record.jsonl").unlink()
    assert train_main([str(path), "--work-dir", str(run), "--resume", str(run / "iter_2.pth")]) == 0
    (resumed,), _ = read_records(run / "record.jsonl")
    assert (resumed["start"], resumed["pretrained_sha256"], resumed["pretrained_from"]) == ("random", None, None)


def test_two_seeds_differ_and_one_repeats(tmp_path: Path) -> None:
    """What a record says of its seed is what ran with it: weights and metrics, bit by bit."""
    found, weights = [], []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = tiny_training.config(
            folder, iterations=4, extra="record = dict(method='m', task='pretrain', dataset='d')"
        )
        assert train_main([str(path), "--work-dir", str(folder / "run"), "--seed", str(seed)]) == 0
        found += read_records(folder / "run" / "record.jsonl")[0]
        state = torch.load(folder / "run" / "iter_4.pth", weights_only=True)["state_dict"]
        weights.append(torch.cat([tensor.flatten() for tensor in state.values()]))
    assert [one["seed"] for one in found] == [0, 0, 1]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert found[0]["metrics"] == found[1]["metrics"] != found[2]["metrics"]
    # The seed is no part of the protocol: the three are rows of one protocol.
    assert len({one["fingerprint"] for one in found}) == 1
