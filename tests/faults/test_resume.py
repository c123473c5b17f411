"""Killed and stopped runs resume to bit-equal states; checkpoints are whole, or the one before is used."""

from __future__ import annotations

import os
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_training
import torch
from same_training import assert_same_training
from torch.utils.data import DataLoader

from adpe.engine import launch
from adpe.engine.hooks.checkpointing import EXIT_PREEMPTED, latest_checkpoint, plain, read_training_checkpoint
from adpe.engine.launch import train_main
from adpe.engine.resuming.reproducible import (
    AdPEBatchSampler,
    AdPESampler,
    AdPESeededDataset,
    PositionedIterator,
    random_state,
    set_random_state,
)
from adpe.errors import UserError


def seen(folder: Path) -> dict[int, str]:
    """What each iteration saw (first value of the batch, names of the images); the last time counts."""
    lines = (folder / "seen.txt.0").read_text().splitlines()
    return {int(line.split()[0]): line for line in lines}


def train(folder: Path, name: str, *arguments: str, **values) -> Path:
    """Train in this process without a kill; returns the work directory."""
    path = tiny_training.config(folder, name=f"{name}.py", **values)
    assert train_main([str(path), "--work-dir", str(folder / name), *arguments]) == 0
    return folder / name


@pytest.mark.slow
def test_run_killed_with_sigkill_resumes_bit_equal_whatever_its_workers(tmp_path):
    reference = train(tmp_path, "whole", kill_at=-1)
    config = tiny_training.config(tmp_path, name="killed.py", kill_at=8, workers=2)
    arguments = ("train.py", config, "--work-dir", tmp_path / "killed")
    killed = tiny_training.run(*arguments)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "iter_12.pth").exists()
    assert train_main([*map(str, arguments[1:]), "--resume"]) == 0
    assert "resumed epoch: 0, iter: 5" in "".join(log.read_text() for log in (tmp_path / "killed").glob("*/*.log"))
    assert_same_training(reference / "iter_12.pth", tmp_path / "killed" / "iter_12.pth")
    assert seen(reference) == seen(tmp_path / "killed")
    # The reference itself is not constant: another seed gives other parameters.
    other = read_training_checkpoint(train(tmp_path, "other", "--seed", "1") / "iter_12.pth")
    assert not torch.equal(
        other["state_dict"]["linear.weight"],
        read_training_checkpoint(reference / "iter_12.pth")["state_dict"]["linear.weight"],
    )


def test_run_told_to_stop_inside_an_epoch_saves_and_resumes_bit_equal(tmp_path):
    # 26 images in batches of 2, 4 batches per step: 3 whole steps per epoch, 12 of the 13 batches.
    values = {"by_epoch": True, "iterations": 3, "length": 26, "batch_size": 2, "interval": 1, "effective_batch": 8}
    reference = train(tmp_path, "whole", **values)
    assert len(seen(reference)) == 36
    config = tiny_training.config(tmp_path, name="stopped.py", kill_at=18, **values, extra=(
        "custom_hooks = [dict(type='KillHook', at=kill_at, number=15)]"))  # fmt: skip
    arguments = [str(config), "--work-dir", str(tmp_path / "stopped")]
    assert train_main(arguments) == EXIT_PREEMPTED == 85
    # SIGTERM came in the middle of a step (iteration 18): the run stops at the end of the step.
    saved = read_training_checkpoint(tmp_path / "stopped" / "iter_20.pth")
    assert (saved["meta"]["epoch"], saved["meta"]["iter"]) == (1, 20)
    assert train_main([*arguments, "--resume"]) == 0
    assert_same_training(reference / "epoch_3.pth", tmp_path / "stopped" / "epoch_3.pth")
    assert seen(reference) == seen(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "iter_20.pth").exists()


def test_torn_latest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    work_dir = train(tmp_path, "run")
    assert sorted(path.name for path in work_dir.glob("*.pth")) == ["iter_10.pth", "iter_12.pth"]
    assert (work_dir / "last_checkpoint").read_text() == str(work_dir / "iter_12.pth")
    assert latest_checkpoint(work_dir)[0] == work_dir / "iter_12.pth"
    whole = (work_dir / "iter_12.pth").read_bytes()
    weights = whole.index(
        read_training_checkpoint(work_dir / "iter_12.pth")["state_dict"]["linear.weight"].numpy().tobytes()
    )
    flipped = whole[:weights] + bytes([whole[weights] ^ 1]) + whole[weights + 1 :]
    for damage in (whole[: len(whole) // 2], flipped, b""):
        (work_dir / "iter_12.pth").write_bytes(damage)
        with pytest.raises(UserError, match=r"iter_12\.pth"):
            read_training_checkpoint(work_dir / "iter_12.pth")
        path, meta = latest_checkpoint(work_dir)
        assert (path.name, meta["iter"]) == ("iter_10.pth", 10)
    reference = train(tmp_path, "whole")
    assert train_main([str(tmp_path / "run.py"), "--work-dir", str(work_dir), "--resume"]) == 0
    assert_same_training(work_dir / "iter_12.pth", reference / "iter_12.pth")
    for path in work_dir.glob("*.pth"):
        path.write_bytes(b"torn")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        latest_checkpoint(work_dir)


def test_moved_work_dir_and_stale_pointer_are_understood(tmp_path):
    work_dir = train(tmp_path, "run")
    moved = work_dir.rename(tmp_path / "moved")
    assert latest_checkpoint(moved)[0] == moved / "iter_12.pth"
    (moved / "last_checkpoint").write_text("iter_99.pth")
    assert latest_checkpoint(moved)[0] == moved / "iter_12.pth"
    assert latest_checkpoint(tmp_path) is None


def test_full_disk_stops_the_run_with_earlier_checkpoints_intact(tmp_path):
    path = tiny_training.config(tmp_path, name="full.py")
    args = launch.argparse.Namespace(
        config=str(path), work_dir=str(tmp_path / "full"), cfg_options=None, launcher="none", resume=None, amp=None,
        seed=None, deterministic=False,
    )  # fmt: skip
    runner = launch.train(args)
    before = (tmp_path / "full" / "iter_12.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"iter_12.pth could not be saved: .*File too large.*--resume"):
            runner.save_checkpoint(str(tmp_path / "full"), "iter_12.pth", meta={"epoch": 0, "iter": 12})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "full" / "iter_12.pth").read_bytes() == before
    assert not list((tmp_path / "full").glob(".*.tmp"))


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_reading_a_checkpoint_executes_nothing(tmp_path):
    torch.save({"state_dict": {}, "meta": Payload(tmp_path / "executed")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="not safe to read"):
        read_training_checkpoint(tmp_path / "bad.pth")
    torch.save({"state_dict": {}, "meta": {"config": "raise SystemExit(3)"}}, tmp_path / "code.pth")
    assert "config" not in read_training_checkpoint(tmp_path / "code.pth")["meta"]
    assert not (tmp_path / "executed").exists()


def test_resuming_a_finished_run_repeats_a_lost_last_validation_and_its_record_once(tmp_path):
    work_dir = train(tmp_path, "run")
    record = (work_dir / "record.jsonl").read_text()
    (work_dir / "record.jsonl").unlink()
    arguments = [str(tmp_path / "run.py"), "--work-dir", str(work_dir), "--resume"]
    assert train_main(arguments) == 0
    again = (work_dir / "record.jsonl").read_text()
    assert '"metrics": {"error": ' in again
    metrics = [line.split('"metrics": ')[1].split("}")[0] for line in (record, again)]
    assert metrics[0] == metrics[1]
    assert train_main(arguments) == 0
    assert (work_dir / "record.jsonl").read_text() == again


def loader(length=10, batch_size=2, workers=0, endless=False, **kw):
    dataset = AdPESeededDataset(tiny_training.TinyDataset(length), seed=5)
    kind = "InfiniteSampler" if endless else "DefaultSampler"
    sampler = AdPESampler(dataset, {"type": kind, "shuffle": True}, seed=7)
    return DataLoader(dataset, batch_sampler=AdPEBatchSampler(sampler, batch_size, **kw), num_workers=workers)


def values(batches):
    return [batch["inputs"].flatten().tolist() for batch in batches]


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("asks_one_by_one", [False, True])
def test_positioned_iterator_goes_on_where_the_run_was(endless, asks_one_by_one):
    whole = PositionedIterator(loader(endless=endless), 0)
    expected = values(next(whole) for _ in range(14))
    assert len({tuple(v) for v in expected}) == 14
    resumed = PositionedIterator(loader(endless=endless), 8)
    if asks_one_by_one:
        assert [next(resumed) for _ in range(8)] == [None] * 8
    else:
        resumed.skip_iter(8)
    assert values(next(resumed) for _ in range(6)) == expected[8:]


def test_epoch_is_a_whole_number_of_steps_and_can_start_inside():
    data = loader(length=9, batch_size=2, accumulation=2)
    assert len(data) == len(list(data)) == 4  # 5 batches, the last of one image; 4 are 2 whole steps
    expected = values(data)
    data.batch_sampler.skip(3)
    assert values(data) == expected[3:]
    assert values(data) == expected
    with pytest.raises(UserError, match=r"10 images per process.*\(2 x 8\)"):
        loader(accumulation=8)


def test_items_depend_on_seed_pass_and_index_alone():
    dataset = AdPESeededDataset(tiny_training.TinyDataset(10), seed=5)
    first = dataset[3]["inputs"]
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(dataset[3]["inputs"], first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(dataset[3 + 10]["inputs"], first)
    assert dataset[3 + 10]["data_samples"]["index"] == 3
    assert not torch.equal(AdPESeededDataset(tiny_training.TinyDataset(10), seed=6)[3]["inputs"], first)
    assert dataset.metainfo == {"classes": ("a", "b")}


def test_random_state_comes_back():
    state = random_state()
    drawn = [random.random(), np.random.rand(), torch.rand(2).tolist()]
    set_random_state(state)
    assert [random.random(), np.random.rand(), torch.rand(2).tolist()] == drawn


def test_plain_keeps_values_and_names_what_it_cannot_hold():
    value = {"a": np.float64(1.5), "b": (True, None, [np.arange(2)]), "c": torch.ones(2)}
    result = plain(value)
    assert result["a"] == 1.5 and type(result["a"]) is float
    assert result["b"] == (True, None, [[0, 1]]) and result["b"][0] is True
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[0\] is a builtins.object"):
        plain({"a": [object()]})
