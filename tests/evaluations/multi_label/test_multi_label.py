"""Multi-label recognition through the launcher: it learns, resumes, is compared over images, and refuses wrong data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("mmengine")
from built_configs import ROOT, config

import adpe
from adpe.engine.evaluating import evaluate_main
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.features import tokens
from adpe.evaluations.multi_label.metrics import ranked_precision, threshold_scores
from adpe.leaderboard.records import read_records
from adpe.leaderboard.uncertainty.paired_images import compare_images, metrics_of, read_per_image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIDE, SQUARE = 48, 16
DUAL, LINEAR = "multi_label/scenes.py", "multi_label/scenes_linear.py"
TABLE, PROMPTS = ["text_side=table"], ["text_side=random"]


def write_squares(root: Path, scrambled: bool = False) -> Path:
    """Pictures of grey noise with coloured squares, COCO JSON and label maps; scrambled, a JSON of others' pictures."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / "classes.json").write_text(json.dumps(["background", *COLOURS]))
    for split, count in (("training", 160), ("validation", 60)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            pixels = rng.integers(90, 160, (SIDE, SIDE, 1)).repeat(3, axis=2).astype(np.uint8)
            labels = np.ones((SIDE, SIDE), np.uint8)
            places = rng.permutation((SIDE // SQUARE) ** 2)
            for category, colour in enumerate(COLOURS.values()):
                if rng.random() < 0.4:
                    row, column = (int(v) * SQUARE for v in divmod(int(places[category]), SIDE // SQUARE))
                    pixels[row : row + SQUARE, column : column + SQUARE] = colour
                    labels[row : row + SQUARE, column : column + SQUARE] = 2 + category
                    box = {"bbox": [column, row, SQUARE, SQUARE], "area": SQUARE**2, "iscrowd": 0}
                    own = {"id": len(annotations) + 1, "image_id": number, "category_id": category + 1}
                    annotations.append({**own, **box})
            Image.fromarray(pixels).save(root / "images" / split / f"{number:03d}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{number:03d}.png")
            images.append({"id": number, "file_name": f"{number:03d}.png", "width": SIDE, "height": SIDE})
        if scrambled and split == "training":
            for image, name in zip(images, rng.permutation([one["file_name"] for one in images]), strict=True):
                image["file_name"] = str(name)
        categories = [{"id": i, "name": name} for i, name in enumerate(COLOURS, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares"))


def command(data: Path, folder: Path, name: str, *options: str, seed: int = 0) -> list[str]:
    started = [str(ROOT / "configs" / name), "--work-dir", str(folder), "--seed", str(seed), "--cfg-options"]
    return [*started, f"data_root={data}", *options]


def run(data: Path, folder: Path, name: str, *options: str, seed: int = 0) -> dict[str, Any]:
    assert train_main(command(data, folder, name, *options, seed=seed)) == 0
    records, faults = read_records(folder / "record.jsonl")
    assert not faults
    return records[-1]


@pytest.mark.slow(30)
def test_dual_prompts_learn_and_scrambled_features_do_not(squares: Path, tmp_path: Path) -> None:
    """What is chance is the share of pictures that have a class, about 40 %."""
    record = run(squares, tmp_path / "a", DUAL, *TABLE)
    found = record["metrics"]
    assert record["task"] == "multilabel"
    assert found["mAP"] > 85 and found["linear_mAP"] > 75
    assert found["over_linear"] == pytest.approx(found["mAP"] - found["linear_mAP"])
    facts = record["protocol"]["facts"]
    assert (facts["known"], facts["text"], facts["system"]) == (0.5, "table", "dual prototypes")
    assert (tmp_path / "a" / "regions.png").stat().st_size > 10_000
    kept = json.loads((tmp_path / "a" / "classes.json").read_text())
    each = kept["average_precision"]
    assert np.mean([row["dual"] for row in each.values()]) == pytest.approx(found["mAP"])
    low, high = kept["over_linear_95"]
    assert low < found["over_linear"] < high
    arrays = read_per_image(record["per_image"])
    assert metrics_of(arrays, arrays["images"])["mAP"](np.arange(60)) == pytest.approx(found["mAP"])
    wrong = run(write_squares(tmp_path / "data", scrambled=True), tmp_path / "b", DUAL, *TABLE)
    assert wrong["metrics"]["mAP"] < 65 and wrong["metrics"]["linear_mAP"] < 65
    compared = compare_images(record["per_image"], wrong["per_image"], ["mAP"], resamples=200)["mAP"]
    assert compared.mean == pytest.approx(found["mAP"] - wrong["metrics"]["mAP"]) and compared.low > 10


@pytest.mark.slow(30)
def test_prompts_before_a_random_text_side_learn(squares: Path, tmp_path: Path) -> None:
    found = run(squares, tmp_path / "a", DUAL, *PROMPTS)
    assert found["metrics"]["mAP"] > 75
    facts = found["protocol"]["facts"]
    assert (facts["text"], facts["contexts"], facts["projection"]) == ("random", 16, "learned")
    again = run(squares, tmp_path / "b", DUAL, *PROMPTS)
    assert again["metrics"] == found["metrics"] and again["fingerprint"] == found["fingerprint"]


@pytest.mark.slow(20)
def test_augmented_images_keep_their_labels(squares: Path, tmp_path: Path) -> None:
    """As the full recipe has it: nothing is kept, and every pass draws anew."""
    augmented = ["evaluation.cached=False", "train_dataloader.dataset.cutout=0.3", "evaluation.epochs=8"]
    record = run(squares, tmp_path, DUAL, *TABLE, *augmented, "known=1.0")
    assert record["metrics"]["mAP"] > 80
    assert record["protocol"]["facts"]["augmented"] is True


@pytest.mark.slow(40)
def test_the_controls_are_other_protocols(squares: Path, tmp_path: Path) -> None:
    few = [*TABLE, "evaluation.epochs=3"]
    plain = run(squares, tmp_path / "a", DUAL, *few)
    for number, option in enumerate(("evaluation.weights=uniform", "evaluation.prompts=positive", "known=0.2")):
        other = run(squares, tmp_path / str(number), DUAL, *few, option)
        assert other["fingerprint"] != plain["fingerprint"] and other["metrics"]["mAP"] != plain["metrics"]["mAP"]
        same = other["metrics"]["linear_mAP"] == plain["metrics"]["linear_mAP"]
        assert same == (option != "known=0.2")
    uniform = json.loads((tmp_path / "0" / "classes.json").read_text())
    assert uniform["weight_of_the_mean_region"] == pytest.approx(1 / 37)


@pytest.mark.slow(25)
@pytest.mark.parametrize("name", [DUAL, LINEAR])
def test_a_stopped_training_resumes_and_ends_alike(name: str, squares: Path, tmp_path: Path, monkeypatch: Any) -> None:
    options = ["evaluation.epochs=4", *(TABLE if name == DUAL else ["pool=avg"])]
    whole = run(squares, tmp_path / "whole", name, *options)
    save, done = tokens.Progress.save, []

    def stop(self: Any, number: int) -> None:
        save(self, number)
        done.append(number)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, AssertionError)):
        patch.setattr(tokens.Progress, "save", stop)
        run(squares, tmp_path / "stopped", name, *options)
    assert run(squares, tmp_path / "stopped", name, *options)["metrics"] == whole["metrics"]
    assert done == [1, 2]
    first, second = (torch.load(tmp_path / one / "probe.pt", weights_only=True) for one in ("whole", "stopped"))
    for key, tensor in first["head"].items():
        assert torch.equal(tensor, second["head"][key]), key
    # Other labels are another training, though images and options are the same.
    run(squares, tmp_path / "stopped", name, *options, "known=0.3")
    assert torch.load(tmp_path / "stopped" / "probe.pt", weights_only=True)["key"] != first["key"]


@pytest.mark.slow(15)
def test_several_encoders_in_one_table(squares: Path, tmp_path: Path, capsys: Any) -> None:
    """Of `tools/evaluate.py`, on the linear probe alone."""
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = adpe.create_encoder("adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=SIDE)
        files.append(str(tmp_path / f"encoder{seed}.safetensors"))
        adpe.save_checkpoint({f"encoder.{key}": value for key, value in encoder.state_dict().items()}, files[-1])
    arguments = [str(ROOT / "configs" / LINEAR), *files, "--work-dir", str(tmp_path / "runs")]
    assert evaluate_main([*arguments, "--cfg-options", f"data_root={squares}", "pool=avg"]) == 0
    records = [read_records(path)[0][-1] for path in sorted((tmp_path / "runs").rglob("record.jsonl"))]
    first, second = (read_per_image(record["per_image"])["scores"] for record in records)
    assert first.shape == second.shape == (60, 3) and not np.allclose(first, second)
    for record in records:
        assert record["task"] == "multilabel" and record["metrics"]["mAP"] > 75
        assert set(record["metrics"]) == {"mAP", "mAP_micro", "CF1", "OF1"}
    shown = capsys.readouterr().out
    assert all(f"{record['metrics']['mAP']:.2f}" in shown for record in records)


def test_unknown_labels_are_left_out_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random((50, 3)), rng.integers(-1, 2, (50, 3))
    each, mean = ranked_precision(scores, targets)
    for label in range(3):
        known = targets[:, label] >= 0
        alone, _ = ranked_precision(scores[known, label : label + 1], targets[known, label : label + 1])
        assert each[label] == alone[0]
    arrays = {"images": np.arange(50).astype(str), "scores": scores, "targets": targets}
    measured = metrics_of(arrays, arrays["images"])["mAP"]
    assert measured(np.arange(50)) == pytest.approx(mean)
    drawn = rng.integers(0, 50, 50)
    # Copies of an image are equal scores: the order among them changes nothing.
    assert measured(drawn) == pytest.approx(ranked_precision(scores[drawn], targets[drawn])[1])
    known, guess = targets >= 0, (scores > 0.5) & (targets >= 0)
    right = (guess & (targets == 1)).sum()
    found = threshold_scores(scores, targets)
    assert found["OP"] == pytest.approx(100 * right / guess.sum())
    assert found["OR"] == pytest.approx(100 * right / (targets[known] == 1).sum())


def test_classes_without_an_image() -> None:
    scores, targets = np.array([[0.9, 0.8], [0.1, 0.2]]), np.array([[1, 0], [0, 0]])
    assert ranked_precision(scores, targets)[1] == pytest.approx(100)
    assert ranked_precision(scores, targets, "zero")[1] == pytest.approx(50)
    assert threshold_scores(scores, targets)["CF1"] == pytest.approx(100)
    assert threshold_scores(scores, targets, empty_classes="zero")["CF1"] == pytest.approx(50)


def test_the_published_recipe() -> None:
    """arXiv 2206.09541, partial labels on COCO; the scales are written in the reference's code."""
    cfg = config("configs/multi_label/coco_vitb.py")
    told = build_evaluation(cfg.evaluation)
    assert (told.epochs, told.warmup_epochs, told.warmup_lr, told.batch_size) == (50, 1, 1e-5, 32)
    assert (told.lr, told.momentum, told.weight_decay) == (0.002, 0.9, 5e-4)
    assert (told.region_scale, told.logit_scale, told.loss_weight) == (20, 5, 0.03)
    assert (told.gamma_neg, told.gamma_pos, told.clip) == (2, 1, 0.05)
    assert (told.known, told.weights, told.prompts, told.cached) == (0.5, "softmax", "dual", False)
    assert (told.text.contexts, told.text.class_specific, told.text.told()) == (16, False, "random")
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert (train.cutout, train.rand_augment) == (0.5, True) and "cutout" not in val
    for data in (train, val):
        assert (data.transform.input_size, data.transform.crop_mode, data.transform.crop_pct) == (448, "squash", 1)
    assert cfg.model.img_size == 448
    clip = config("configs/multi_label/coco_vitb.py", {"text_checkpoint": "clip.pt"})
    assert build_evaluation(clip.evaluation).text.told() == "clip"


def test_the_rates_of_the_published_schedule(squares: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """An epoch at 1e-5, then a cosine by epoch, of every group."""
    seen, save = [], tokens.Progress.save

    def note(self: Any, number: int) -> None:
        seen.append([group["lr"] for group in self.optimizer.param_groups])
        save(self, number)

    monkeypatch.setattr(tokens.Progress, "save", note)
    run(squares, tmp_path, DUAL, *TABLE, "evaluation.epochs=5", "evaluation.lr=0.3", "evaluation.projection_lr=0.2")
    wanted = [[1e-5] * 3] + [[p * (1 + np.cos(np.pi * e / 5)) / 2 for p in (0.3, 0.2, 0.1)] for e in range(1, 5)]
    assert np.allclose(seen, wanted, rtol=1e-9)


@pytest.mark.parametrize(("options", "key"), [
    ({"known": 0}, "known"), ({"known": 1.5}, "known"), ({"weights": "mean"}, "weights"),
    ({"prompts": "one"}, "prompts"),
    ({"epochs": 1}, "epochs"), ({"clip": 1}, "clip"), ({"lr": 0}, "lr"), ({"gamma_neg": -1}, "gamma_neg"),
    ({"empty_classes": "none"}, "empty_classes"), ({"text": {"type": "bert"}}, "bert"), ({"bogus": 1}, "bogus"),
    ({"batch_size": 1}, "batch_size"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        build_evaluation({"type": "dual_prompts", "text": {"type": "table"}, **options})


@pytest.mark.parametrize("options", [{"epochs": 0}, {"blr": 0}, {"known": -1}, {"batch_size": 1}])
def test_options_of_the_probe(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        build_evaluation({"type": "multi_label_probe", **options})


def test_wrong_data_are_named(squares: Path, tmp_path: Path, capsys: Any) -> None:
    """A table without a class, another class in the test, no known label, and more images a batch than there are."""
    save_file({"red": torch.ones(4), "green": torch.ones(4)}, tmp_path / "words.safetensors")
    words = f"evaluation.text.checkpoint={tmp_path / 'words.safetensors'}"
    foreign = write_squares(tmp_path / "foreign")
    content = json.loads((foreign / "instances_validation.json").read_text())
    content["categories"][0]["name"] = "crimson"
    (foreign / "instances_validation.json").write_text(json.dumps(content))
    cases = (
        (squares, [*TABLE, words], "blue"),
        (squares, [*TABLE, "evaluation.batch_size=200"], "160 training images"),
        (squares, [*TABLE, "known=0.0001"], "known"),
        (foreign, TABLE, "crimson"),
        (squares, ["train_dataloader.dataset.cutout=0.5", *TABLE], "cached"),
    )
    for number, (data, options, told) in enumerate(cases):
        assert train_main(command(data, tmp_path / str(number), DUAL, *options)) == 2, told
        assert told in capsys.readouterr().err


def test_labels_that_say_nothing_are_refused() -> None:
    evaluation = build_evaluation({"type": "multi_label_probe", "batch_size": 2})
    mixed, nothing = (SimpleNamespace(targets=np.array(rows), classes=("a", "b")) for rows in ([[0, 1]], [[0, -1]]))
    with pytest.raises(UserError, match="train_dataloader has no rows of labels"):
        evaluation.check({"train": object(), "val": mixed})
    with pytest.raises(UserError, match=r"no label is present in the 1 images of val_dataloader \(a, b\)"):
        evaluation.check({"train": mixed, "val": nothing})
