"""PACMAC through the launcher: it learns, resumes, keeps its records, and refuses data that are not two domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT, config, meta_model
from torchvision import transforms

import adpe
from adpe.data.domains import AdPEDomainDataset
from adpe.engine.evaluating import evaluate_main
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.domain_adaptation.evaluation import bootstrap, class_mean, selection_metrics
from adpe.evaluations.domain_adaptation.pacmac import DomainClassifier
from adpe.evaluations.domain_adaptation.training import Recipe
from adpe.evaluations.features import tokens
from adpe.leaderboard.records import read_records
from adpe.leaderboard.uncertainty.paired_images import metrics_of, read_per_image
from adpe.models.layer_decay import layer_decay_groups

COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}
PUBLISHED = "configs/officehome_pacmac_vitb.py"


def write(root: Path, domain: str, count: int, contrast: float, seed: int, colours: dict = COLOURS) -> None:
    generator = np.random.default_rng(seed)
    for name, colour in colours.items():
        (root / domain / name).mkdir(parents=True)
        for i in range(count):
            middle = 128 + contrast * (np.array(colour) - 128)
            pixels = np.clip(middle + generator.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / domain / name / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours in two domains, full and pale: 15 images a class of the source, 20 of the target; and an encoder."""
    root = tmp_path_factory.mktemp("domains")
    write(root, "full", 15, 1.0, 0)
    write(root, "pale", 20, 0.35, 1)
    torch.manual_seed(0)
    model = adpe.create_encoder("adpe_vit_tiny_patch4", embed_dim=32, depth=2, num_heads=2, img_size=16)
    adpe.save_checkpoint({f"encoder.{k}": v for k, v in model.state_dict().items()}, root / "encoder.safetensors")
    return root


def options(data: Path, *more: str, encoder: bool = True) -> list[str]:
    """The published config on images of 16 pixels, in steps of 12 images, with rates for few of them."""
    return [
        "--cfg-options", f"data_root={data}", "source=full", "target=pale", "num_classes=3", "image_size=16",
        "augmentation.resize=18", "augmentation.rand_augment=None", "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False", "target_dataloader.num_workers=0", "val_dataloader.num_workers=0",
        "val_dataloader.persistent_workers=False", *[f"evaluation.{stage}.{key}" for stage in ("finetune", "adapt")
        for key in ("batch_size=12", "process_batch=6", "blr=0.06", "min_lr=0.0001", "warmup_epochs=1")],
        "evaluation.finetune.epochs=8", "evaluation.adapt.epochs=4",
        *([f"pretrained={data / 'encoder.safetensors'}"] if encoder else []), *more,
    ]  # fmt: skip


def run(work: Path, arguments: list[str]) -> dict[str, Any]:
    assert train_main([str(ROOT / PUBLISHED), "--work-dir", str(work), *arguments]) == 0
    records, faults = read_records(work / "record.jsonl")
    assert faults == []
    return records[-1]


@pytest.mark.slow(8)
def test_it_learns_and_scrambled_features_do_not(data: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Through tools/evaluate.py; an encoder whose features go to other images of the batch misses the bar."""
    more = options(data, "evaluation.baselines=[oracle,confidence,random_views]", encoder=False)
    command = [str(ROOT / PUBLISHED), str(data / "encoder.safetensors"), "--work-dir", str(tmp_path)]
    assert evaluate_main([*command, *more]) == 0
    folder = next((tmp_path / Path(PUBLISHED).stem).iterdir())
    (record,) = read_records(folder / "record.jsonl")[0]
    found = record["metrics"]
    names = ("source_only", "oracle", "confidence", "random_views", "pacmac")
    assert found["oracle_top1"] > 80 and found["pacmac_top1"] > 80 and found["selected_precision"] > 80
    assert f"{found['pacmac_top1']:.2f}" in capsys.readouterr().out
    assert found["pacmac_gain"] == pytest.approx(found["pacmac_top1"] - found["source_only_top1"])
    assert found["pacmac_gain_low"] <= found["pacmac_gain"] <= found["pacmac_gain_high"]
    assert (record["task"], record["dataset"]) == ("adaptation", "OfficeHome full -> pale")
    assert (folder / "committee.png").stat().st_size > 10_000
    assert [record["protocol"]["data"][name]["images"] for name in ("train", "target", "val")] == [45, 48, 12]
    told = json.loads((folder / "pacmac.json").read_text())
    assert {*told["top1"]} == {*names} and len(told["target_images_by_epoch"]["pacmac"]) == 4
    last = told["target_images_by_epoch"]["pacmac"][-1]
    assert last["images"] == 36 and 0 < last["selected"] <= 36  # three steps of 12, as the source's 45 images allow
    arrays = read_per_image(record["per_image"])
    of = metrics_of(arrays, arrays["images"])
    for name in names:
        assert of[f"{name}_top1"](np.arange(12)) == pytest.approx(found[f"{name}_top1"])

    pooled = DomainClassifier.pooled
    monkeypatch.setattr(DomainClassifier, "pooled", lambda self, tokens: pooled(self, tokens).roll(5, 0))
    scrambled = run(tmp_path / "scrambled", options(data))["metrics"]
    assert scrambled["oracle_top1"] < 70 and scrambled["pacmac_top1"] < 70


@pytest.mark.slow(12)
def test_a_stopped_run_resumes_and_ends_alike(data: Path, tmp_path: Path, monkeypatch) -> None:
    """Stopped in its last stage: finished ones are read, the rest ends in the same weights bit by bit."""
    few = options(
        data, "evaluation.finetune.epochs=2", "evaluation.adapt.epochs=3", "evaluation.baselines=[confidence]"
    )
    whole = run(tmp_path / "whole", few)
    save, saved = tokens.Progress.save, []

    def stop(self: Any, done: int) -> None:
        save(self, done)
        saved.append((self.path.stem, done))
        if saved[-1] == ("pacmac", 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, AssertionError)):
        patch.setattr(tokens.Progress, "save", stop)
        run(tmp_path / "stopped", few)
    assert saved[-1] == ("pacmac", 1)
    again: list[Any] = []
    monkeypatch.setattr(tokens.Progress, "save", lambda self, done: (save(self, done), again.append(self.path.stem)))
    stopped = run(tmp_path / "stopped", few)
    assert again == ["pacmac", "pacmac"] and stopped["metrics"] == whole["metrics"]
    ends = [torch.load(tmp_path / name / "pacmac.pt", weights_only=True)["head"] for name in ("whole", "stopped")]
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())
    again.clear()
    run(tmp_path / "stopped", [*few, "evaluation.threshold=0.9"])
    assert {*again} == {"confidence", "pacmac"}
    again.clear()
    run(tmp_path / "stopped", [*few, "--seed", "1"])
    assert {*again} == {"source_only", "confidence", "pacmac"}


def test_the_published_recipe() -> None:
    """Every number of the protocol, on the built objects (arXiv 2206.08222 and its repository's commands)."""
    cfg = config(PUBLISHED)
    evaluation = build_evaluation(cfg.evaluation)
    rule = evaluation.committee()
    assert (rule.views, rule.mask_ratio, rule.threshold, rule.weight) == (2, 0.75, 0.5, 0.1)
    assert (rule.label_smoothing, rule.probe_mode, rule.seeding, rule.no_agreement) == (0.1, "train", True, "drop")
    finetune, adapt = evaluation.finetune, evaluation.adapt
    assert (finetune.epochs, finetune.batch_size, finetune.process_batch) == (100, 4 * 256, 256)
    assert (adapt.epochs, adapt.batch_size, adapt.process_batch) == (100, 8 * 64, 64)
    for recipe, base in ((finetune, 5e-5), (adapt, 1e-4)):
        assert (recipe.blr, recipe.min_lr, recipe.warmup_epochs) == (base, 2e-4, 5)
        assert (recipe.layer_decay, recipe.weight_decay) == (0.65, 0.05)
        assert recipe.lr == pytest.approx(2e-4)
        rates = [recipe.rate(epoch) for epoch in (0, 2.5, 5, 50, 99.9)]
        assert rates == pytest.approx([0, 1e-4, 2e-4, 2e-4, 2e-4])  # flat after the warm-up, as published
    model = meta_model(PUBLISHED)
    encoder = model.backbone
    assert (encoder.embed_dim, len(encoder.blocks), encoder.patch_size, encoder.num_classes) == (768, 12, 16, 65)
    assert [block.drop_path.rate for block in encoder.blocks][-1] == pytest.approx(0.1)
    assert isinstance(encoder.fc_norm, torch.nn.LayerNorm) and isinstance(encoder.norm, torch.nn.Identity)
    classifier = DomainClassifier(encoder)
    encoder.requires_grad_(True)
    groups = layer_decay_groups(classifier, 1.0, 0.05, 0.65)
    encoder.requires_grad_(False)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    assert sorted({group["lr_scale"] for group in groups}) == pytest.approx([0.65**i for i in range(13, -1, -1)])


def test_the_published_augmentation(data: Path) -> None:
    cfg = config(PUBLISHED, {"data_root": str(data), "source": "full", "target": "pale", "num_classes": 3})
    loaders = [cfg[f"{name}_dataloader"].dataset for name in ("train", "target", "val")]
    train, target, test = (AdPEDomainDataset(**{k: v for k, v in one.items() if k != "type"}) for one in loaders)
    assert [one.view for one in (train, target, test)] == ["augmented", "pair", "clean"]
    resize, crop, flip, random, *_ = train.augmentation.transforms
    assert (resize.size, crop.size, flip.p) == ((256, 256), (224, 224), 0.5)
    assert (random.num_layers, {op.magnitude for op in random.ops}, {op.prob for op in random.ops}) == (1, {2}, {1.0})
    assert [type(step).__name__ for step in train.augmentation.transforms] == [
        "Resize", "RandomCrop", "RandomHorizontalFlip", "RandAugment", "MaybeToTensor", "Normalize",
    ]  # fmt: skip
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    theirs = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])  # fmt: skip
    torch.testing.assert_close(test.transform(wide), theirs(wide))
    assert not {*target.paths()} & {*test.paths()} and len(target) == 48 and len(test) == 12
    sample = target[0]
    assert sample["inputs"].shape == sample["augmented"].shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"finetune": {"epochs": 5, "warmup_epochs": 5}}, "warmup_epochs"),
        ({"adapt": {"process_batch": 100}}, "process_batch = 100"),
        ({"adapt": {"blr": 0}}, "blr"),
        ({"adapt": {"momentum": 0.9}}, "momentum"),
        ({"views": 0}, "views"),
        ({"threshold": 1.5}, "threshold"),
        ({"weight": -1}, "weight"),
        ({"no_agreement": "keep"}, "no_agreement"),
        ({"probe_mode": "test"}, "probe_mode"),
        ({"baselines": ["best"]}, "best"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], key: str) -> None:
    given = config(PUBLISHED).evaluation.to_dict()
    for name, value in change.items():
        given[name] = {**given[name], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=key):
        build_evaluation(given)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (["target=full"], "share 36 images"),
        (["val_dataloader.dataset.part.take=[0]"], "share 12 images"),
        (["target_dataloader.dataset.view=clean"], "view=pair"),
        (["target_dataloader.dataset.view=both"], "'both'"),
        (["target_dataloader.dataset.part.take=[5]"], "part ="),
        (["val_dataloader.dataset.style=sepia"], "sepia"),
        (["target_dataloader=None"], "target_dataloader"),
        (["augmentation.crop=20"], "crop = 20"),
        (["augmentation.rand_augment=wild"], "wild"),
        (["evaluation.adapt.batch_size=60"], "batch_size = 60"),
        (["evaluation.views=5"], "committee of 5 views"),
        (["model.num_classes=4"], "num_classes = 4"),
        (["target=sketch"], "sketch"),
    ],
)
def test_what_cannot_be_run_is_told(more: list[str], key: str, data: Path, tmp_path: Path, capsys) -> None:
    command = [
        str(ROOT / PUBLISHED),
        "--work-dir",
        str(tmp_path),
        *options(data, "evaluation.finetune.epochs=2", *more),
    ]
    assert train_main(command) == 2
    assert key in capsys.readouterr().err


def test_classes_are_matched_by_name(tmp_path: Path, capsys) -> None:
    """A target that lacks a class, or has one of its own, is refused, and both are named."""
    write(tmp_path, "full", 5, 1.0, 0)
    write(tmp_path, "less", 5, 0.5, 1, {name: COLOURS[name] for name in ("green", "red")})
    write(tmp_path, "other", 5, 0.5, 2, {"azure": COLOURS["blue"], **{n: COLOURS[n] for n in ("green", "red")}})
    for target, count, missing in (("less", 2, "blue"), ("other", 3, "azure")):
        more = [f"target={target}", f"target_dataloader.dataset.num_classes={count}",
                f"val_dataloader.dataset.num_classes={count}"]  # fmt: skip
        command = [str(ROOT / PUBLISHED), "--work-dir", str(tmp_path / "run"), *options(tmp_path, *more, encoder=False)]
        assert train_main(command) == 2
        assert missing in capsys.readouterr().err


def test_intervals_shares_and_means() -> None:
    """By hand: half against all right of 400 images; an interval of a share has 1.96 standard errors to each side."""
    base = np.arange(400) % 2 == 0
    found = bootstrap({"source_only": base, "pacmac": np.ones(400, bool)}, 0)
    assert found["pacmac"]["top1"] == [100.0, 100.0, 100.0] and found["source_only"]["gain"] == [0.0, 0.0, 0.0]
    mean, low, high = found["pacmac"]["gain"]
    assert mean == 50 and (low, high) == pytest.approx((50 - 4.9, 50 + 4.9), abs=0.7)
    assert class_mean(np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 1])) == 50.0
    row = torch.tensor([20.0, 10, 8, 6, 7, 2, 12])
    assert selection_metrics("pacmac", row) == {
        "selected_share": 50.0, "selected_precision": 80.0, "no_agreement_share": 10.0, "pseudo_label_top1": 60.0,
    }  # fmt: skip
    assert selection_metrics("confidence", torch.tensor([20.0, 0, 0, 0, 0, 0, 3])) == {"confidence_selected_share": 0.0}


def test_a_schedule_that_falls() -> None:
    recipe = Recipe(epochs=10, batch_size=128, process_batch=64, blr=2e-3, min_lr=1e-5, warmup_epochs=1)
    assert recipe.lr == 1e-3 and recipe.rate(0.5) == 5e-4 and recipe.rate(1) == 1e-3
    assert recipe.rate(5.5) == pytest.approx((1e-3 + 1e-5) / 2) and recipe.rate(10) == pytest.approx(1e-5)
    assert recipe.steps(300) == 2
