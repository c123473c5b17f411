"""`--data FOLDER` and adpe.pretrain: what a trial leads to, and that the same call resumes bit by bit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import png
from PIL import Image
from same_training import assert_same_training

import adpe
from adpe import cli
from adpe.engine.folder.choice import LONGEST, SHARE_OF_TIME, batch_of, choose, needed_speed
from adpe.engine.folder.command import exported, next_steps
from adpe.engine.folder.settings import FILE
from adpe.engine.folder.trial import Measured, available_memory, measure_all, run_trial
from adpe.engine.hooks.checkpointing import latest_checkpoint
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.leaderboard.records import read_records

CONFIG = "pretrain/photos112_mae"
TINY = {
    "model.embed_dim": 32, "model.depth": 1, "model.num_heads": 2, "model.decoder_embed_dim": 32,
    "model.decoder_depth": 1, "model.decoder_num_heads": 2, "train_dataloader.num_workers": 0,
}  # fmt: skip
# Chosen otherwise by the time of a step: a checkpoint an epoch, to be stopped after, and pictures at the end.
FIXED = {"default_hooks.checkpoint.interval": 1, "custom_hooks.1.interval": 8}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Twenty images, four of them in a subfolder."""
    folder = tmp_path_factory.mktemp("data") / "photographs"
    rng = np.random.default_rng(0)
    for index in range(20):
        path = folder / ("more" if index % 5 == 0 else "") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (120, 130, 3), dtype=np.uint8)).save(path)
    return folder


def measured(model: str, batch: int, speed: float) -> Measured:
    return Measured(model, batch, speed, 10, 2**30)


# What measurements come to -----------------------------------------------------------------------------------------


def test_a_small_folder_takes_a_smaller_batch() -> None:
    assert [batch_of(images, 256) for images in (10**6, 1024, 1023, 60, 7, 1)] == [256, 256, 128, 8, 1, 1]
    assert batch_of(1000, 96) == 96


def test_epochs_fill_the_hours_with_the_fastest_batch() -> None:
    found = [measured("tiny", 16, 50.0), measured("tiny", 32, 80.0), measured("tiny", 64, 70.0)]
    choice = choose(found, 1000, 64, 100, 2.0, None)
    # 15 steps of 64 images: 960 images, 12 s.
    assert (choice.measured.batch_size, choice.steps, choice.epochs) == (32, 15, int(SHARE_OF_TIME * 7200 / 12))
    assert choice.hours == pytest.approx(2.0, rel=0.01)
    assert choice.hours <= 2.0
    assert choose(found, 1000, 64, 100, 2000.0, None).epochs == LONGEST == 1600
    assert choose(found, 1000, 64, 100, 2.0, 7).epochs == 7


def test_the_largest_encoder_that_gets_the_recipes_epochs_is_taken() -> None:
    found = [
        measured("tiny", 32, 80.0),
        measured("small", 32, 40.0),
        measured("small", 64, 45.0),
        measured("base", 8, 9),
    ]
    needed = needed_speed(1000, 64, 100, 1.0)
    assert needed == pytest.approx(100 * 960 / (0.9 * 3600))
    for hours, model in ((0.2, "tiny"), (needed / 80.0 * 1.01, "tiny"), (needed / 45.0 * 1.01, "small"), (4.0, "base")):
        assert choose(found, 1000, 64, 100, hours, None).measured.model == model
    # What is asked for is trained, with the smallest where none gets there in time.
    late = choose(found, 1000, 64, 100, 0.01, 100)
    assert (late.measured.model, late.epochs, late.hours > 0.3) == ("tiny", 100, True)


def test_hours_that_hold_no_epoch_are_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"--hours 0\.001.*0\.0037 h.*--hours 0\.0039"):
        choose([measured("tiny", 32, 80.0)], 1000, 64, 100, 0.001, None)


def test_intervals_follow_the_time_of_a_step() -> None:
    slow, fast = (choose([measured("tiny", 8, speed)], 640, 64, 100, 1e4, 50).intervals() for speed in (0.64, 640.0))
    assert slow == {"checkpoint": 1, "pictures": 5, "log": 1}
    assert fast == {"checkpoint": 50, "pictures": 5, "log": 50}


# The trial -----------------------------------------------------------------------------------------------------------


def plan(photographs: Path, **changes: Any) -> dict[str, Any]:
    options = {name: value for name, value in TINY.items() if not name.endswith(("embed_dim", "num_heads"))}
    options |= {"data_root": str(photographs), "precision": "float32"}
    known = {
        "config": CONFIG, "options": options, "amp": None, "models": ["adpe_vit_tiny_patch16"], "batches": [2, 4, 8],
        "needed": 0.0, "seconds": 0.01,
    }  # fmt: skip
    return {**known, **changes}


def test_sizes_are_tried_until_one_is_too_slow(photographs) -> None:
    models = [f"adpe_vit_{size}_patch16" for size in ("tiny", "small", "base")]
    found = list(measure_all(plan(photographs, models=models, batches=[2])))
    assert found[0] == {"precision": "float32"}
    assert [one["model"] for one in found[1:]] == models
    assert all(one["images_per_s"] > 0 and one["iterations"] >= 1 and one["memory"] > 2**26 for one in found[1:])
    few = list(measure_all(plan(photographs, models=models, batches=[2], needed=1e9)))
    assert [one["model"] for one in few[1:]] == models[:1]


def test_batches_grow_while_they_fit(photographs, monkeypatch) -> None:
    grown = list(measure_all(plan(photographs, batches=[2, 4])))
    assert [one["batch_size"] for one in grown[1:]][:1] == [2]
    monkeypatch.setattr("adpe.engine.folder.trial.available_memory", lambda: 2**20)
    full = list(measure_all(plan(photographs)))
    assert [one["batch_size"] for one in full[1:]] == [2]
    assert available_memory() > 2**20


@pytest.mark.slow
def test_a_mistake_in_the_trials_process_is_told_in_a_sentence(photographs) -> None:
    wrong = plan(photographs)
    wrong["options"]["model.decoder_num_heads"] = 7
    with pytest.raises(UserError, match="7"):
        run_trial(wrong, lambda one: None)


# The call ------------------------------------------------------------------------------------------------------------


def call(photographs: Path, work_dir: Path, config: str | Path = CONFIG, **changes: Any) -> Path:
    options = {**TINY, **FIXED, **changes}
    options = {name.replace(".", "__"): value for name, value in options.items()}
    return adpe.pretrain(photographs, config, work_dir, **options)


@pytest.mark.slow(15)
def test_a_stopped_call_is_resumed_by_the_same_call_bit_by_bit(photographs, tmp_path, capsys, monkeypatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    encoder = call(photographs, whole, epochs=8)
    assert encoder == whole / "encoder.safetensors"
    assert adpe.load_encoder(encoder, verbose=False).embed_dim == 32

    said = json.loads((whole / FILE).read_text())
    chosen, (record,) = said["chosen"], read_records(whole / "record.jsonl")[0]
    assert chosen["effective_batch"] == 4 and chosen["lr"] == pytest.approx(1e-3 * 4 / 256)
    assert chosen["warmup_epochs"] == pytest.approx(5 * 8 / 100)
    assert "epochs" not in chosen and "default_hooks.checkpoint.interval" not in chosen  # they were given
    assert record["dataset"] == "photographs"
    assert record["trial"]["measured"] == chosen["record.trial"]["measured"] != []
    assert record["protocol"]["facts"] | {"epochs": 8, "batch": 4} == record["protocol"]["facts"]
    assert record["protocol"]["config"]["optim_wrapper"]["optimizer"]["lr"] == chosen["lr"]
    assert record["precision"] == chosen["precision"]
    assert next(whole.glob("*/vis_data/vis_image/*.png")).stat().st_size > 1000

    # Another trial may measure something else: the settings of the first one are taken.
    stopped.mkdir()
    shutil.copy(whole / FILE, stopped)

    def interrupt() -> None:
        while not (stopped / "epoch_3.pth").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        call(photographs, stopped, epochs=8)
    thread.join()
    assert not (stopped / "record.jsonl").exists()
    found = latest_checkpoint(stopped)
    assert found is not None and 3 <= found[1]["epoch"] < 8
    assert call(photographs, stopped, epochs=8) == stopped / "encoder.safetensors"
    assert_same_training(whole / "epoch_8.pth", stopped / "epoch_8.pth")
    assert (stopped / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()

    # Once more: nothing is trained, and what comes next is told.
    before = (stopped / "epoch_8.pth").stat().st_mtime_ns
    capsys.readouterr()
    call(photographs, stopped, Path(__file__).parents[2] / f"configs/{CONFIG}.py", epochs=8)
    assert (stopped / "epoch_8.pth").stat().st_mtime_ns == before
    assert next_steps(stopped, str(photographs)) in capsys.readouterr().out
    run_next(stopped, photographs, monkeypatch)
    refuse_what_differs(photographs, stopped, tmp_path)


def run_next(work_dir: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that need nothing but the folder do what they say."""
    lines = [line.strip() for line in next_steps(work_dir, str(photographs)).splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("adpe ")]
    assert [command[1] for command in commands] == ["visualize", "visualize", "evaluate", "share"]
    for command in (commands[0], commands[1], [*commands[3][:-1], "mit"]):
        monkeypatch.setattr("sys.argv", command)
        assert cli.main() == 0
    assert (work_dir / "reconstruct.png").is_file() and (work_dir / "attention.png").is_file()
    assert adpe.from_pretrained(work_dir / "shared", verbose=False).embed_dim == 32


def refuse_what_differs(photographs: Path, work_dir: Path, folder: Path) -> None:
    for changes, said in (({"epochs": 13}, "8.*13"), ({"epochs": 8, "model.depth": 2}, "model.depth")):
        with pytest.raises(UserError, match=said):
            call(photographs, work_dir, **changes)
    with pytest.raises(UserError, match=r"hours = 1\.0.*2\.0"):
        options = {name.replace(".", "__"): value for name, value in {**TINY, **FIXED}.items()}
        adpe.pretrain(photographs, CONFIG, work_dir, 2.0, epochs=8, **options)
    more = folder / "more"
    shutil.copytree(photographs, more)
    (more / "00.png").write_bytes((photographs / "01.png").read_bytes())
    content = json.loads((work_dir / FILE).read_text())
    content["asked"]["data"] = str(more)
    (work_dir / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"images = 20.*21"):
        call(more, work_dir, epochs=8)
    (work_dir / FILE).write_text('{"version": 1')
    with pytest.raises(UserError, match=FILE):
        call(photographs, work_dir, epochs=8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "none"], "none does not exist"),
        (["--data", "empty"], "no images in"),
        (["--data", "some", "--hours", "0"], "--hours 0"),
        (["--data", "some", "--launcher", "pytorch"], "dist_train.sh|RANK"),
        (["--data", "some", "--cfg-options", "effective_batch=9"], "effective_batch = 9.*1 images"),
        (["--data", "some", "--work-dir", "other"], "epoch_3.pth"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "some", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "some/a.png").write_bytes(png(5))
    (tmp_path / "other/epoch_3.pth").write_text("")
    assert train_main([CONFIG, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not list(tmp_path.glob(f"**/{FILE}"))


def test_only_recipes_that_can_be_scaled_are_taken(photographs, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert train_main(["demo/segmentation", "--data", str(photographs)]) == 2
    assert "photos112_adpe" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        train_main([CONFIG, "--hours", "1"])
    assert stop.value.code == 2


def test_a_work_dir_without_an_encoder_says_so(tmp_path) -> None:
    with pytest.raises(UserError, match="no encoder"):
        exported(tmp_path)
