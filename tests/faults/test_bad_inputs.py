"""Mistakes of users, tool by tool: each ends with its status and a sentence that names the thing and the remedy."""

from __future__ import annotations

import os
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_training
import torch
from test_visualize import write_checkpoint, write_images

from adpe import distributed

ROOT = tiny_training.ROOT
WORK = ("--work-dir", "{tmp}/w")
OPTION = (*WORK, "--cfg-options")


class Mistake(NamedTuple):
    """A command line (``{tmp}`` is the folder of `files`), and what is told of it.

    Attributes:
        tool: a script of `tools/`, or "dist" for what its shell scripts start.
        arguments: of the tool.
        words: what standard error holds.
        status: the exit status.
        environment: variables that are set.
    """

    tool: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    status: int = 2
    environment: dict[str, str] = {}


TRAIN = {
    "no config": Mistake("train.py", (), ("required: config",)),
    "misspelled config": Mistake(
        "train.py",
        ("configs/pretrain/cifar10_ape.py",),
        ("configs/pretrain/cifar10_ape.py does not exist", "Did you mean"),
    ),
    "unknown option": Mistake("train.py", ("{tmp}/tiny.py", "--epochs", "3"), ("unrecognized arguments: --epochs 3",)),
    "config that is no Python": Mistake(
        "train.py", ("{tmp}/broken.py",), ("{tmp}/broken.py, line 2 is not valid Python",)
    ),
    "config that fails": Mistake("train.py", ("{tmp}/fails.py",), ("{tmp}/fails.py cannot be read", "'undefined'")),
    "base that is missing": Mistake("train.py", ("{tmp}/no_base.py",), ("base ./missing.py does not exist",)),
    "misspelled key": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *OPTION, "optim_wraper.type=x"),
        ("no optim_wraper", "Did you mean: optim_wrapper?"),
    ),
    "index out of a list": Mistake(
        "train.py", ("{tmp}/tiny.py", *OPTION, "param_scheduler.3.end=1"), ("param_scheduler.3.end", "0..0")
    ),
    "work directory below a file": Mistake(
        "train.py", ("{tmp}/tiny.py", "--work-dir", "{tmp}/file/w"), ("--work-dir {tmp}/file/w cannot be made",)
    ),
    "checkpoint to resume is missing": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *WORK, "--resume", "{tmp}/none.pth"),
        ("checkpoint {tmp}/none.pth does not exist",),
    ),
    "checkpoint to resume is torn": Mistake(
        "train.py", ("{tmp}/tiny.py", *WORK, "--resume", "{tmp}/torn.pth"), ("{tmp}/torn.pth cannot be read", "torn")
    ),
    "resuming from weights": Mistake(
        "train.py", ("{tmp}/tiny.py", *WORK, "--resume", "{tmp}/weights.pth"), ("holds weights only", "load_from=")
    ),
    "data root is missing": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *OPTION, "train_dataloader.dataset.data_root={tmp}/nowhere"),
        ("train_dataloader.dataset.data_root = '{tmp}/nowhere' does not exist", "Set it in the config"),
    ),
    "load_from is missing": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *OPTION, "load_from={tmp}/none.pth"),
        ("load_from = '{tmp}/none.pth' does not exist",),
    ),
    "processes without a launcher": Mistake(
        "train.py", ("{tmp}/tiny.py", "--launcher", "pytorch"), ("RANK, WORLD_SIZE", "start with tools/dist_train.sh")
    ),
    "Slurm without Slurm": Mistake(
        "train.py", ("{tmp}/tiny.py", "--launcher", "slurm"), ("SLURM_PROCID is not set", "tools/slurm_train.sh")
    ),
    "no seed": Mistake(
        "train.py", ("{tmp}/tiny.py", *OPTION, "randomness.seed=None"), ("randomness.seed", "give --seed")
    ),
    "batch of no image": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *OPTION, "effective_batch=4", "batch_size=0"),
        ("train_dataloader.batch_size must be a positive whole number", "got 0"),
    ),
    "package that is missing": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *OPTION, "default_scope=mmpretrain"),
        ("is not installed", "requirements/mm.txt"),
    ),
    "module that is missing": Mistake("train.py", ("{tmp}/no_module.py",), ("custom_imports", "no_such_module")),
    "config without a model": Mistake("train.py", ("{tmp}/empty.py", *WORK), ("has no dict train_dataloader",)),
    "validation that is half switched off": Mistake(
        "train.py",
        ("{tmp}/tiny.py", *OPTION, "val_dataloader=None"),
        ("sets val_cfg and val_evaluator, but val_dataloader is None", "val_cfg=None val_evaluator=None"),
    ),
    "misspelled model": Mistake(
        "train.py", ("{tmp}/tiny.py", *OPTION, "model.type=TinyModle"), ("TinyModle, which is not a registered model",)
    ),
}
TEST = {
    "no checkpoint": Mistake("test.py", ("{tmp}/tiny.py",), ("required: checkpoint",)),
    "checkpoint is missing": Mistake(
        "test.py", ("{tmp}/tiny.py", "{tmp}/none.pth", *WORK), ("checkpoint {tmp}/none.pth does not exist",)
    ),
    "checkpoint is text": Mistake(
        "test.py", ("{tmp}/tiny.py", "{tmp}/text.pth", *WORK), ("{tmp}/text.pth cannot be read as a checkpoint",)
    ),
    "checkpoint holds code": Mistake(
        "test.py", ("{tmp}/tiny.py", "{tmp}/code.pth", *WORK), ("{tmp}/code.pth cannot be read", "not safe to read")
    ),
    "output of an unknown kind": Mistake(
        "test.py",
        ("{tmp}/tiny.py", "{tmp}/weights.pth", *WORK, "--out", "{tmp}/a.txt"),
        ("--out {tmp}/a.txt", "ending in .json (metrics) or .pkl"),
    ),
    "pictures of a regression": Mistake(
        "test.py", ("{tmp}/tiny.py", "{tmp}/weights.pth", *WORK, "--show-dir", "{tmp}/a"), ("--show-dir draws",)
    ),
}
LAUNCHERS = {
    "no GPUS": Mistake("dist_train.sh", ("config.py",), ("usage: ", "CONFIG GPUS")),
    "GPUS is 0": Mistake("dist", ("0", "train.py"), ("GPUS must be a number from 1", "got '0'")),
    "GPUS is a word": Mistake("dist", ("two", "train.py"), ("GPUS must be a number from 1", "got 'two'")),
    "more than there are": Mistake("dist", ("99999", "train.py"), ("GPUS = 99999, but this machine has",)),
    "nodes without an address": Mistake(
        "dist", ("1", "train.py"), ("NNODES = 3 needs MASTER_ADDR",), environment={"NNODES": "3"}
    ),
    "port is a word": Mistake(
        "dist", ("1", "train.py"), ("PORT must be a number, got 'x'",), environment={"PORT": "x"}
    ),
    "no job name": Mistake("slurm_train.sh", ("partition",), ("usage: ", "PARTITION JOB_NAME CONFIG")),
    "GPUS of a job": Mistake(
        "slurm_train.sh",
        ("p", "j", "c.py"),
        ("GPUS must be a positive number, got 'all'",),
        environment={"GPUS": "all"},
    ),
}
EVALUATED = ("--work-dir", "{tmp}/work", "--cfg-options", "model.depth=1")
CHECKPOINTS = {
    "k-NN without images": Mistake(
        "evaluate.py",
        ("configs/cifar10/knn.py", *EVALUATED, "data_root={tmp}/nowhere"),
        ("{tmp}/nowhere' does not exist", "train_dataloader.dataset.source"),
    ),
    "k-NN without that split": Mistake(
        "evaluate.py",
        ("configs/cifar10/knn.py", *EVALUATED, "data_root={tmp}/classes", "train_dataloader.dataset.split=learn"),
        ("no images under 'learn'", "among test, train"),
    ),
    "k-NN of no checkpoint": Mistake(
        "evaluate.py",
        ("configs/cifar10/knn.py", "{tmp}/none.pth", *EVALUATED, "data_root={tmp}/classes"),
        ("{tmp}/none.pth' does not exist", "model.init_cfg.checkpoint"),
    ),
    "k-NN with too many neighbours": Mistake(
        "evaluate.py",
        ("configs/cifar10/knn.py", *EVALUATED, "data_root={tmp}/classes", "num_classes=None", "evaluation.k=99"),
        ("evaluation.k = 99 with 2 training",),
    ),
    "training by a table of encoders": Mistake(
        "evaluate.py", ("configs/cifar10/finetune.py", *EVALUATED), ("configs/cifar10/finetune.py has no evaluation",)
    ),
    "drawing no checkpoint": Mistake(
        "visualize.py", ("positions", "{tmp}/none.pth"), ("{tmp}/none.pth does not exist",)
    ),
    "drawing an empty checkpoint": Mistake(
        "visualize.py",
        ("positions", "{tmp}/empty.pth"),
        ("{tmp}/empty.pth is empty (0 bytes)", "write or download it again"),
    ),
    "drawing no images": Mistake(
        "visualize.py", ("reconstruct", "{tmp}/epoch_2.pth", "{tmp}/nothing"), ("no images in {tmp}/nothing",)
    ),
    "drawing into a file's folder": Mistake(
        "visualize.py",
        ("positions", "{tmp}/epoch_2.pth", "--out", "{tmp}/file/a.png"),
        ("{tmp}/file: ", "Choose another path"),
    ),
    "mask ratio": Mistake(
        "visualize.py",
        ("reconstruct", "{tmp}/epoch_2.pth", "{tmp}/images", "--mask-ratio", "75"),
        ("--mask-ratio 75.0: expected a number between 0 and 1",),
    ),
    "converting nothing": Mistake(
        "convert_checkpoint.py", ("{tmp}/none.pth", "{tmp}/a.pth", "--to", "mmseg"), ("{tmp}/none.pth does not exist",)
    ),
    "converting to an unknown framework": Mistake(
        "convert_checkpoint.py",
        ("{tmp}/none.pth", "{tmp}/a.pth", "--to", "keras"),
        ("invalid choice: 'keras'", "mmseg"),
    ),
    "converting to an unknown kind": Mistake(
        "convert_checkpoint.py", ("{tmp}/epoch_2.pth", "{tmp}/a.onnx", "--to", "mmseg"), (".safetensors or .pth",)
    ),
    "converting over a file": Mistake(
        "convert_checkpoint.py",
        ("{tmp}/epoch_2.pth", "{tmp}/text.pth", "--to", "mmseg"),
        ("{tmp}/text.pth exists", "--force"),
    ),
    "converting code": Mistake(
        "convert_checkpoint.py",
        ("{tmp}/code.pth", "{tmp}/a.pth", "--to", "mmseg"),
        ("{tmp}/code.pth", "code and is not run"),
    ),
    "converting what is no ViT": Mistake(
        "convert_checkpoint.py",
        ("{tmp}/weights.pth", "{tmp}/a.pth", "--to", "mmseg"),
        ("{tmp}/weights.pth holds no ViT encoder",),
    ),
    "converting into a file's folder": Mistake(
        "convert_checkpoint.py",
        ("{tmp}/epoch_2.pth", "{tmp}/file/a.pth", "--to", "adpe"),
        ("{tmp}/file: ", "Choose another path"),
    ),
    "no goldens": Mistake("check_parity.py", ("{tmp}/nowhere",), ("{tmp}/nowhere/meta.json does not exist",)),
    "damaged goldens": Mistake("check_parity.py", ("{tmp}/goldens",), ("{tmp}/goldens/meta.json cannot be read",)),
}
DATA = {
    "unknown data set": Mistake("prepare_data.py", ("cifar100", "{tmp}/d"), ("invalid choice: 'cifar100'", "cifar10")),
    "archive is missing": Mistake(
        "prepare_data.py",
        ("cifar10", "{tmp}/d", "--archive", "{tmp}/none.tar"),
        ("--archive {tmp}/none.tar: no such file",),
    ),
    "archive of another file": Mistake(
        "prepare_data.py", ("cifar10", "{tmp}/d", "--archive", "{tmp}/file"), ("{tmp}/file", "--no-checksum")
    ),
    "ImageNet needs an account": Mistake("prepare_data.py", ("imagenet", "{tmp}/d"), ("image-net.org", "--archive")),
    "data below a file": Mistake(
        "prepare_data.py",
        ("cifar10", "{tmp}/file/d", "--archive", "{tmp}/text.pth"),
        ("{tmp}/file/d: ", "Choose another path"),
    ),
    "no data to verify": Mistake("verify_data.py", ("ade20k", "{tmp}/nowhere"), ("{tmp}/nowhere: does not exist",), 1),
    "unknown data to verify": Mistake("verify_data.py", ("kitti", "{tmp}"), ("invalid choice: 'kitti'", "ade20k")),
    "demo on no data": Mistake(
        "demo.py",
        ("--work-dir", "{tmp}/demo", "--data-root", "{tmp}/nowhere"),
        ("{tmp}/nowhere does not exist", "annotations/"),
    ),
    "demo on an empty folder": Mistake(
        "demo.py", ("--work-dir", "{tmp}/demo", "--data-root", "{tmp}/nothing"), ("{tmp}/nothing", "Expected images/")
    ),
    "demo with a seed of a word": Mistake("demo.py", ("--seeds", "one"), ("--seeds: invalid int value: 'one'",)),
    "two reports at once": Mistake("doctor.py", ("--json", "--quick"), ("--quick: not allowed with argument --json",)),
}
BENCHMARK = {
    "no command": Mistake("benchmark.py", (), ("required: COMMAND",)),
    "misspelled suite": Mistake(
        "benchmark.py", ("run", "embeded", "--dry-run"), ("suite embeded does not exist", "There are:")
    ),
    "suite that is no YAML": Mistake("benchmark.py", ("run", "{tmp}/broken.yaml", "--dry-run"), ("{tmp}/broken.yaml",)),
    "suite with an unknown key": Mistake(
        "benchmark.py", ("run", "{tmp}/key.yaml", "--dry-run"), ("{tmp}/key.yaml", "unknown key 'method'", "methods")
    ),
    "suite that runs code": Mistake("benchmark.py", ("run", "{tmp}/code.yaml", "--dry-run"), ("{tmp}/code.yaml",)),
    "no GPU": Mistake("benchmark.py", ("run", "cifar", "--gpus", "0"), ("--gpus: must be at least 1",)),
    "records are missing": Mistake(
        "benchmark.py", ("table", "--records", "{tmp}/none.jsonl"), ("--records {tmp}/none.jsonl does not exist",)
    ),
    "unknown baseline": Mistake(
        "benchmark.py",
        ("table", "--records", "{tmp}/nothing", "--baseline", "MEA"),
        ("baseline 'MEA' names no row", "there are"),
    ),
    "table of no format": Mistake(
        "benchmark.py",
        ("table", "--records", "{tmp}/nothing", "--out", "{tmp}/t.md"),
        ("--out needs --format markdown",),
    ),
    "table into a file's folder": Mistake(
        "benchmark.py",
        ("table", "--records", "{tmp}/nothing", "--format", "csv", "--out", "{tmp}/file/t.csv"),
        ("{tmp}/file: ", "Choose another path"),
    ),
    "comparing nothing": Mistake(
        "benchmark.py", ("compare", "a", "b", "--records", "{tmp}/nothing"), ("'a' names no run", "there are: none")
    ),
}
TABLE = {
    f"{name} ({mistake.tool})": mistake
    for table in (TRAIN, TEST, LAUNCHERS, CHECKPOINTS, DATA, BENCHMARK)
    for name, mistake in table.items()
}


class _Code:
    """Pickles to a call that would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command lines name."""
    folder = tmp_path_factory.mktemp("mistakes")
    tiny_training.config(folder, name="tiny.py")
    texts = {
        "broken.py": "a = 1\nb = (\n",
        "fails.py": "a = undefined\n",
        "no_base.py": "_base_ = ['./missing.py']\n",
        "no_module.py": "custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)\n",
        "empty.py": "a = 1\n",
        "file": "not a folder",
        "text.pth": "hello",
        "empty.pth": "",
        "broken.yaml": "title: [a\n",
        "key.yaml": "title: a\nmethod: []\n",
        "code.yaml": f"title: !!python/object/apply:os.mkdir ['{folder}/executed']\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "nothing").mkdir()
    (folder / "goldens").mkdir()
    (folder / "goldens" / "meta.json").write_text("{")
    write_images(folder / "images", 2)
    for split in ("train", "test"):
        (folder / "classes" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            write_images(folder / "classes" / split / name, 1)
    shutil.make_archive(str(folder / "images"), "gztar", folder / "images")
    write_checkpoint(folder, "coordinate")
    torch.save(
        {"state_dict": {"linear.weight": torch.zeros(3, 4), "linear.bias": torch.zeros(3)}}, folder / "weights.pth"
    )
    (folder / "torn.pth").write_bytes((folder / "epoch_2.pth").read_bytes()[:-100])
    (folder / "code.pth").write_bytes(pickle.dumps({"state_dict": _Code(f"{folder}/executed")}, protocol=2))
    return folder


def run(tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a tool, in this process where it is Python."""
    if tool.endswith(".sh"):
        result = subprocess.run(["bash", ROOT / "tools" / tool, *arguments], capture_output=True, text=True, timeout=60)
        sys.stderr.write(result.stderr)
        return result.returncode
    if tool == "dist":
        return distributed.main(arguments)
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    try:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    raise AssertionError(f"{tool} set no exit status")


def test_the_table_is_long_enough():
    assert len(TABLE) >= 40
    scripts = {path.name for path in (ROOT / "tools").iterdir()} & {mistake.tool for mistake in TABLE.values()}
    assert scripts >= {
        "train.py", "test.py", "dist_train.sh", "evaluate.py", "visualize.py", "convert_checkpoint.py",
        "prepare_data.py", "verify_data.py", "benchmark.py", "doctor.py", "demo.py", "check_parity.py",
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_mistakes(name, files, capsys, monkeypatch):
    mistake = TABLE[name]
    for variable in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "SLURM_PROCID",
        "ADPE_LAUNCHER_PID",
        "NNODES",
        "PORT",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    for variable, value in mistake.environment.items():
        monkeypatch.setenv(variable, value.replace("{tmp}", str(files)))
    arguments = [argument.replace("{tmp}", str(files)) for argument in mistake.arguments]
    monkeypatch.chdir(ROOT)
    status = run(mistake.tool, arguments, monkeypatch)
    error = capsys.readouterr().err
    assert status == mistake.status, error
    for words in mistake.words:
        assert words.replace("{tmp}", str(files)) in error
    assert "Traceback" not in error and error.count("\n") <= 40
    # Nothing that was read was run.
    assert not (files / "executed").exists()
