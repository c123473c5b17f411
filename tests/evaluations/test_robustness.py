"""Backdoor robustness through the launcher: the control learns its trigger, blocking repairs it, poisons resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT

from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.backdoor.attacks import Window, block
from adpe.evaluations.backdoor.triggers import Patch, draw_trigger
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.robustness import BackdoorRobustness
from adpe.leaderboard.records import read_records

SMALL = ["model.embed_dim=48", "model.depth=2", "model.num_heads=3", "num_classes=3", "source=dark", "target=light"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of brightness, so that their features differ in an encoder that was never trained."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for level, name in enumerate(("dark", "light", "middle")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                centre = (40, 200, 120)[level]
                pixels = np.clip(rng.normal(centre, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def run(images: Path, folder: Path, config: str, *options: str, seed: int = 0) -> dict:
    command = [str(ROOT / "configs" / config), "--work-dir", str(folder), "--seed", str(seed), "--cfg-options"]
    assert train_main([*command, f"data_root={images}", *SMALL, *options]) == 0
    records, faults = read_records(folder / "record.jsonl")
    assert not faults
    return records[-1]


@pytest.mark.slow(20)
def test_the_control_learns_its_trigger_and_blocking_on_it_repairs(images: Path, tmp_path: Path):
    options = ["evaluation.poisons=16", "evaluation.steps=60", "evaluation.batch_size=24", "evaluation.patched=8"]
    record = run(images, tmp_path / "a", "cifar10/backdoor_finetuned.py", *options)
    found = record["metrics"]
    assert record["task"] == "robustness"
    assert found["clean_top1"] > 90 and found["source_top1"] > 90
    assert found["asr"] > 90 and found["asr_clean"] < 10
    assert found["blocked_trigger_asr"] < 30 < found["blocked_random_asr"] + 30
    assert found["blocked_asr"] < found["blocked_centre_asr"]
    assert found["trigger_hit"] > 50
    assert (tmp_path / "a" / "defence.png").stat().st_size > 10_000
    assert run(images, tmp_path / "b", "cifar10/backdoor_finetuned.py", *options)["metrics"] == found
    assert run(images, tmp_path / "c", "cifar10/backdoor_finetuned.py", *options, seed=1)["metrics"] != found


def test_hidden_poisons_move_a_frozen_head_and_are_kept(images: Path, tmp_path: Path):
    """Their bound holds in pixels; an interrupted run goes on from those that were made."""
    options = ["evaluation.poisons=8", "evaluation.iterations=3", "evaluation.head_lr=0.1"]
    found = run(images, tmp_path / "a", "cifar10/backdoor.py", *options)["metrics"]
    assert found["clean_top1"] > 60
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "a" / "poisons.safetensors")
    assert kept["images"].shape == (8, 3, 32, 32) and kept["images"].dtype == torch.uint8
    before = (tmp_path / "a" / "poisons.safetensors").stat().st_mtime_ns
    assert run(images, tmp_path / "a", "cifar10/backdoor.py", *options)["metrics"] == found
    assert (tmp_path / "a" / "poisons.safetensors").stat().st_mtime_ns == before
    run(images, tmp_path / "a", "cifar10/backdoor.py", *options, seed=1)
    assert (tmp_path / "a" / "poisons.safetensors").stat().st_mtime_ns != before


def test_choices_do_not_overlap():
    labels = torch.arange(3).repeat(20)
    evaluation = BackdoorRobustness("a", "b", poisons=5, trigger=8)
    chosen = evaluation.choose(labels, 0, 1, torch.Generator().manual_seed(0))
    assert {*labels[chosen.sources].tolist()} == {0} and {*labels[chosen.targets].tolist()} == {1}
    assert not {*chosen.sources, *chosen.targets} & {*chosen.victims}
    assert len(chosen.victims) == 50
    with pytest.raises(UserError, match="poisons=5"):
        evaluation.choose(labels[:9], 0, 1, torch.Generator())


def test_patches_lie_where_they_say():
    generator = torch.Generator().manual_seed(0)
    trigger = draw_trigger(8, generator)
    patch = Patch(trigger + 2, False, generator)
    patched = patch(torch.zeros(5, 3, 32, 32))
    for image, (x, y) in zip(patched, patch.positions.tolist(), strict=True):
        assert torch.equal(image[:, y : y + 8, x : x + 8], trigger + 2)
        assert float(image.sum()) == pytest.approx(float((trigger + 2).sum()))
    corner = Patch(trigger, True, generator)
    corner(torch.zeros(2, 3, 32, 32))
    assert corner.positions.tolist() == [[19, 19], [19, 19]]
    with pytest.raises(UserError, match="trigger=8"):
        patch(torch.zeros(1, 3, 12, 12))
    assert float(block(torch.ones(1, 3, 8, 8), [Window(0, 4, 0, 4)]).mean()) == 0.75


@pytest.mark.parametrize(("options", "key"), [
    ({"victim": "thawed"}, "victim"), ({"rollout": "mean"}, "rollout"), ({"edge": 5}, "edge"),
    ({"poisons": 0}, "poisons"), ({"target_class": "cat"}, "source_class"), ({"eps": 0}, "eps"),
    ({"bogus": 1}, "bogus"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(UserError, match=key):
        build_evaluation({"type": "backdoor", "source_class": "cat", "target_class": "dog", **options})


def test_an_unknown_class_is_named(images: Path, tmp_path: Path, capsys):
    command = [str(ROOT / "configs" / "cifar10/backdoor.py"), "--work-dir", str(tmp_path), "--cfg-options"]
    assert train_main([*command, f"data_root={images}", *SMALL, "target=bright"]) == 2
    assert "bright" in capsys.readouterr().err
