"""The launcher: several processes, options, evaluation, and mistakes told in a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import tiny_training
import torch
from mmengine.config import Config

from adpe.distributed import number_of_processes, rendezvous
from adpe.engine.config import read_config
from adpe.engine.launch import test_main as evaluate
from adpe.engine.launch import train_main
from adpe.engine.settings.device import fit_to_device
from adpe.errors import UserError

DETERMINISTIC = "model.update(random_target=0.0, dropout=0.0); val_dataloader['dataset']['jitter'] = 0"


@pytest.mark.slow
def test_two_processes_on_the_cpu_equal_one(tmp_path):
    values = {"effective_batch": 8, "batch_size": 8, "iterations": 6, "interval": 6, "extra": DETERMINISTIC}
    one = tiny_training.config(tmp_path, name="one.py", **values)
    assert train_main([str(one), "--work-dir", str(tmp_path / "one")]) == 0
    two = tiny_training.config(tmp_path, name="two.py", **values)
    result = tiny_training.run("dist_train.sh", two, 2, "--work-dir", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert "effective batch 8 = 2 processes x 4 images x 1 accumulation step" in result.stdout
    ranks = [torch.load(tmp_path / "two" / f"final_rank_{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = torch.load(tmp_path / "one" / "final_rank_0.pt", weights_only=True)
    for name in alone:
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], alone[name], rtol=1e-5, atol=1e-6)

    # Each image of a step is seen by one of the two.
    def images(folder, rank):
        return [set(line.split()[2:]) for line in (tmp_path / folder / f"seen.txt.{rank}").read_text().splitlines()]

    for whole, first, second in zip(images("one", 0), images("two", 0), images("two", 1), strict=True):
        assert first | second == whole and not first & second
    record = json.loads((tmp_path / "two" / "record.jsonl").read_text())
    assert (record["effective_batch"], record["hardware"]["processes"]) == (8, 2)
    alone_record = json.loads((tmp_path / "one" / "record.jsonl").read_text())
    assert record["metrics"]["error"] == pytest.approx(alone_record["metrics"]["error"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_told_to_stop_save_once_at_the_same_iteration(tmp_path):
    path = tiny_training.config(
        tmp_path,
        iterations=100000,
        interval=100000,
        extra="custom_hooks = [dict(type='KillHook', at=3, number=10, parent=True)]\n"
        "default_hooks['checkpoint']['poll_interval'] = 5",
    )
    result = tiny_training.run("dist_train.sh", path, 2, "--work-dir", tmp_path / "stops")
    assert result.returncode == 85, result.stderr
    (saved,) = (tmp_path / "stops").glob("*.pth")
    lines = [(tmp_path / "stops" / f"seen.txt.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert saved.name == f"iter_{len(lines[0])}.pth" and len(lines[0]) == len(lines[1]) and len(lines[0]) % 5 == 0


@pytest.mark.slow
def test_killed_launcher_leaves_no_process(tmp_path):
    path = tiny_training.config(tmp_path, iterations=100000, interval=100000)
    command = [
        "bash",
        str(tiny_training.ROOT / "tools" / "dist_train.sh"),
        str(path),
        "2",
        "--work-dir",
        str(tmp_path / "w"),
    ]
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(command, env=tiny_training.environment(), stdout=log, stderr=log)

    def left():
        found = 0
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # ended meanwhile
                found += str(path).encode() in file.read_bytes()
        return found

    def wait_until(condition, seconds):
        end = time.time() + seconds
        while not condition() and time.time() < end:
            time.sleep(0.1)
        assert condition(), (tmp_path / "log").read_text()[-2000:]

    wait_until((tmp_path / "w" / "seen.txt.1").exists, 250)
    assert left() == 3
    launcher.kill()
    launcher.wait()
    wait_until(lambda: left() == 0, 20)


def test_number_of_processes():
    available = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    assert number_of_processes("1") == 1
    assert number_of_processes(str(available)) == available
    for gpus in ("0", "-1", "two", "", "1.5"):
        with pytest.raises(UserError, match=f"GPUS must be a number from 1 to {available}, got '{gpus}'"):
            number_of_processes(gpus)
    with pytest.raises(UserError, match=f"GPUS = {available + 1}, but this machine has {available} "):
        number_of_processes(str(available + 1))


def test_rendezvous_honours_the_usual_variables():
    several = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1", "PORT": "29501"}
    assert rendezvous(several) == ["--nnodes=3", "--node_rank=2", "--master_addr=10.0.0.1", "--master_port=29501"]
    del several["PORT"]
    assert rendezvous(several)[3] == "--master_port=29500"
    ports = {rendezvous({})[3] for _ in range(5)}
    assert len(ports) > 1 and "--master_port=29500" not in ports
    assert rendezvous({})[:3] == ["--nnodes=1", "--node_rank=0", "--master_addr=127.0.0.1"]
    with pytest.raises(UserError, match="NNODES = 3 needs MASTER_ADDR"):
        rendezvous({"NNODES": "3"})
    with pytest.raises(UserError, match="PORT must be a number, got 'x'"):
        rendezvous({"PORT": "x"})
    with pytest.raises(UserError, match="NODE_RANK = 1 must be below NNODES = 1"):
        rendezvous({"NODE_RANK": "1"})


def test_scripts_refuse_wrong_numbers_before_starting(tmp_path):
    result = tiny_training.run("dist_train.sh", "configs/none.py", 0)
    assert result.returncode == 2 and result.stderr.startswith("error: GPUS must be a number from 1")
    assert tiny_training.run("dist_train.sh").returncode == 2
    assert "usage: " in tiny_training.run("dist_test.sh", "a", "b").stderr
    assert "usage: " in tiny_training.run("slurm_train.sh", "partition", "name").stderr


def test_evaluation_gives_the_metrics_of_training(tmp_path):
    path = tiny_training.config(tmp_path, iterations=4, interval=4)
    assert train_main([str(path), "--work-dir", str(tmp_path / "run")]) == 0
    checkpoint, out = tmp_path / "run" / "iter_4.pth", tmp_path / "out" / "metrics.json"
    arguments = [str(path), str(checkpoint), "--work-dir", str(tmp_path / "test")]
    options = ["--cfg-options", "model.random_target=0.0", "test_dataloader.dataset.jitter=0"]
    assert evaluate([*arguments, *options, "--out", str(out)]) == 0
    error = json.loads(out.read_text())["error"]
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    points = tiny_training.TinyDataset(8).points
    expected = (
        torch.nn.functional.linear(points, state["linear.weight"], state["linear.bias"]) - points[:, :3] * 2
    ) ** 2
    assert error == pytest.approx(expected.mean().item(), rel=1e-5)
    dump = tmp_path / "predictions.pkl"
    assert evaluate([*arguments, "--out", str(dump)]) == 0
    assert dump.stat().st_size > 0


def test_checkpoint_of_another_model_is_refused(tmp_path, capsys):
    path = tiny_training.config(tmp_path)
    torch.save(
        {"state_dict": {"linear.weight": torch.zeros(3, 4), "head.bias": torch.zeros(1)}}, tmp_path / "other.pth"
    )
    arguments = [str(path), str(tmp_path / "other.pth"), "--work-dir", str(tmp_path / "test")]
    assert evaluate(arguments) == 2
    error = capsys.readouterr().err
    assert (
        "does not fit the config's model (TinyModel): parameters 1 missing (linear.bias); 1 unknown (head.bias)"
        in error
    )
    (tmp_path / "text.pth").write_text("hello")
    assert evaluate([str(path), str(tmp_path / "text.pth"), "--work-dir", str(tmp_path / "test")]) == 2
    assert f"{tmp_path / 'text.pth'} cannot be read as a checkpoint" in capsys.readouterr().err
    assert evaluate([str(path), str(tmp_path / "none.pth"), "--work-dir", str(tmp_path / "test")]) == 2
    assert f"checkpoint {tmp_path / 'none.pth'} does not exist" in capsys.readouterr().err


def test_options_of_top_level_variables_reach_what_is_computed_from_them(tmp_path):
    base = tmp_path / "base.py"
    base.write_text("width = 3\nmodel = dict(width=width, twice=2 * width)\n")
    path = tmp_path / "child.py"
    path.write_text("_base_ = ['./base.py']\nroot = 'a'\ndata = dict(path=root + '/b', width={{_base_.width}})\n")
    assert read_config(path).to_dict()["model"] == {"width": 3, "twice": 6}
    cfg = read_config(path, {"width": 5, "root": "c", "data.width": 7})
    assert cfg.model.to_dict() == {"width": 5, "twice": 10}
    assert cfg.data.to_dict() == {"path": "c/b", "width": 7}
    assert cfg.filename == str(path)
    assert read_config(path, {"width": 5}).data.width == 5


MISTAKES = {
    "train_cfg.max_iter=3": "train_cfg.max_iter: the config has no train_cfg.max_iter. Did you mean: max_iters?",
    "optim_wraper.type=x": "the config has no optim_wraper. Did you mean: optim_wrapper?",
    "model.backbone.depth=3": "unexpected keyword argument 'backbone'",
    "param_scheduler.3.end=1": "--cfg-options param_scheduler.3.end: 3 is not one of 0..0",
    "model.type=TinyModle": "the config names TinyModle, which is not a registered model (default_scope mmengine). ",
    "train_dataloader.dataset.type=Nothing": "the config names Nothing, which is not a registered dataset",
    "model.colour=red": "the config does not fit TinyModel: ",
    "train_dataloader.dataset.data_root=/nowhere": "train_dataloader.dataset.data_root = '/nowhere' does not exist",
    "load_from=none.pth": "load_from = 'none.pth' does not exist",
    "length=2": "fewer than one optimizer step",
    "train_dataloader=3": "has no dict train_dataloader",
}


@pytest.mark.parametrize("option", MISTAKES)
def test_mistakes_in_the_config_are_told_in_a_few_lines(tmp_path, capsys, option):
    path = tiny_training.config(tmp_path, effective_batch=4)
    assert train_main([str(path), "--work-dir", str(tmp_path / "run"), "--cfg-options", option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and MISTAKES[option] in error
    assert error.count("\n") <= 3 and "Traceback" not in error


def test_missing_and_broken_configs(tmp_path, capsys):
    def error(path, *arguments):
        assert train_main([str(path), *arguments]) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text and text.count("\n") <= 3
        return text

    assert "config configs/pretrain/nothing.py does not exist" in error("configs/pretrain/nothing.py")
    broken = tmp_path / "broken.py"
    broken.write_text("a = 1\nb = (\n")
    assert f"config {broken}, line 2 is not valid Python" in error(broken)
    broken.write_text("_base_ = ['./missing.py']\n")
    assert "base ./missing.py does not exist" in error(broken)
    broken.write_text("a = undefined\n")
    assert f"config {broken} cannot be read: NameError: name 'undefined' is not defined" in error(broken)
    broken.write_text("custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)\n")
    assert "custom_imports: Failed to import no_such_module: No module named 'no_such_module'" in error(broken)
    broken.write_text("a = 1\n")
    assert f"config {broken} has no dict train_dataloader" in error(broken, "--work-dir", str(tmp_path / "w"))
    (tmp_path / "file").touch()
    assert "--work-dir" in error(broken, "--work-dir", str(tmp_path / "file" / "w"))
    path = tiny_training.config(tmp_path)
    assert "checkpoint none.pth does not exist" in error(
        path, "--work-dir", str(tmp_path / "w"), "--resume", "none.pth"
    )
    assert "start with tools/dist_train.sh" in error(path, "--launcher", "pytorch")


def test_other_errors_keep_their_traceback(tmp_path, capsys):
    path = tiny_training.config(tmp_path, extra="train_dataloader['dataset']['jitter'] = 'wide'")
    assert train_main([str(path), "--work-dir", str(tmp_path / "run")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_sync_bn_becomes_bn_without_gpus(capsys):
    cfg = Config(
        {"model": {"a": {"norm_cfg": {"type": "SyncBN", "eps": 1e-3}}, "b": [{"type": "SyncBN"}], "c": "SyncBN"}}
    )
    fit_to_device(cfg, "none", print)
    assert cfg.model.to_dict() == {"a": {"norm_cfg": {"type": "BN", "eps": 1e-3}}, "b": [{"type": "BN"}], "c": "SyncBN"}
    assert "2 norm_cfg of the model use BN" in capsys.readouterr().out


def test_dumped_config_repeats_the_run(tmp_path):
    path = tiny_training.config(tmp_path, effective_batch=8, iterations=4, interval=4)
    assert train_main([str(path), "--work-dir", str(tmp_path / "first"), "--seed", "3"]) == 0
    dumped = tmp_path / "first" / path.name
    text = dumped.read_text()
    assert evaluate([str(path), str(tmp_path / "first" / "iter_8.pth"), "--work-dir", str(tmp_path / "first")]) == 0
    assert dumped.read_text() == text
    assert train_main([str(dumped), "--work-dir", str(tmp_path / "again")]) == 0
    states = [torch.load(tmp_path / name / "final_rank_0.pt", weights_only=True) for name in ("first", "again")]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])


def test_default_work_dir(tmp_path, monkeypatch):
    path = tiny_training.config(tmp_path, name="named.py", iterations=1)
    monkeypatch.chdir(tmp_path)
    assert train_main([str(path)]) == 0
    assert Path("work_dirs/named/iter_1.pth").is_file()
