"""Fine-tuning and the linear probe: the models against timm and by hand, the data set, the metric, real runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("mmengine")
from built_configs import ROOT
from image_files import write_tar
from mmengine.evaluator import Evaluator
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from adpe.checkpoints.loading import save_checkpoint
from adpe.data.classification import AdPEClassificationDataset
from adpe.engine.launch import test_main as evaluate
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.classification import AdPEClassifier
from adpe.evaluations.features.frozen_encoder import AdPEFrozenEncoder
from adpe.evaluations.metrics.accuracy import AdPEAccuracy, rank_of_label
from adpe.leaderboard.records import read_records
from adpe.leaderboard.uncertainty.paired_images import metrics_of, read_per_image
from adpe.models.factory import create_encoder

TINY = {"model": "adpe_vit_tiny_patch8", "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}
COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}


def samples(count: int, classes: int = 3) -> dict[str, Any]:
    indices = torch.arange(count)
    return {"label": indices % classes, "index": indices, "img_path": [f"{i}.png" for i in range(count)]}


@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_logits_equal_timms(global_pool: str) -> None:
    """On the same weights; fine-tuning over the mean has its norm after the pooling, as timm's ``fc_norm``."""
    torch.manual_seed(0)
    ours = AdPEClassifier(**TINY, num_classes=5, global_pool=global_pool, learned_pos_embed=True, head_init_std=0.5)
    theirs = TimmViT(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=5, global_pool=global_pool,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = {name.removeprefix("backbone."): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state)
    images = torch.randn(3, 3, 32, 32)
    ours.eval(), theirs.eval()
    expected = theirs(images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-6)


def test_loss_is_that_of_the_targets() -> None:
    """Cross-entropy; smoothed; mixed, with timm's Mixup drawing the same numbers."""
    from timm.data import Mixup

    images, data = torch.randn(4, 3, 32, 32), samples(4)
    for options, targets in (
        ({}, F.one_hot(data["label"], 3).float()),
        ({"label_smoothing": 0.1}, 0.9 * F.one_hot(data["label"], 3) + 0.1 / 3),
    ):
        model = AdPEClassifier(**TINY, num_classes=3, head_init_std=0.5, **options)
        expected = -(targets * model(images).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(model(images, data, mode="loss")["loss"], expected)
    mixup = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    model = AdPEClassifier(**TINY, num_classes=3, head_init_std=0.5, mixup=mixup, label_smoothing=0.1)
    np.random.seed(0)
    loss = model(images.clone(), data, mode="loss")["loss"]
    np.random.seed(0)
    mixed, targets = Mixup(**mixup, label_smoothing=0.1, num_classes=3)(images.clone(), data["label"])
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(loss, -(targets * model(mixed).log_softmax(1)).sum(1).mean())
    # One draw for every two images, as if two processes held them.
    model.mixup_batch = 2
    np.random.seed(0)
    loss = model(images.clone(), data, mode="loss")["loss"]
    np.random.seed(0)
    draw = Mixup(**mixup, label_smoothing=0.1, num_classes=3)
    parts = [draw(images[i : i + 2].clone(), data["label"][i : i + 2]) for i in range(0, len(images), 2)]
    each = [-(targets * model(mixed).log_softmax(1)).sum(1).mean() for mixed, targets in parts]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    # Predictions are of the images as they are.
    scores = torch.stack([one["scores"] for one in model(images, data, mode="predict")])
    torch.testing.assert_close(scores, model(images).softmax(1).detach())


def test_linear_probe_trains_the_head_alone() -> None:
    torch.manual_seed(0)
    model = AdPEClassifier(**TINY, num_classes=3, frozen=True, global_pool="token", head_init_std=0.01).train()
    assert not model.backbone.training and model.norm.training
    images, data = torch.randn(6, 3, 32, 32), samples(6)
    model(images, data, mode="loss")["loss"].backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["head.weight", "head.bias"]
    # By hand: the class token after the final norm, standardised over the batch, then the linear layer.
    with torch.no_grad():
        tokens = model.backbone.forward_features(images)[:, 0].double()
        standard = (tokens - tokens.mean(0)) / (tokens.var(0, unbiased=False) + 1e-6).sqrt()
        expected = standard @ model.head.weight.double().T + model.head.bias.double()
        torch.testing.assert_close(model(images).double(), expected, rtol=1e-4, atol=1e-6)


def test_ranks_and_accuracy() -> None:
    scores = torch.tensor([0.1, 0.5, 0.2, 0.2])
    assert [rank_of_label(scores, label) for label in range(4)] == [3, 0, 1, 2]  # of equal ones the first
    assert rank_of_label(torch.tensor([float("nan"), 1.0]), 1) == 1  # predicts nothing
    rng = np.random.default_rng(0)
    scores, labels = torch.from_numpy(rng.random((200, 12))), rng.integers(0, 12, 200)
    evaluator = Evaluator([AdPEAccuracy()])
    for part in range(0, 200, 50):
        batch = zip(scores[part : part + 50], labels[part : part + 50], strict=True)
        evaluator.process([{"scores": row, "label": label, "index": 0, "img_path": ""} for row, label in batch])
    metrics = evaluator.evaluate(200)
    top5 = scores.topk(5).indices.numpy()
    assert metrics["top1"] == pytest.approx(100 * np.mean(scores.argmax(1).numpy() == labels))
    hits = [label in row for label, row in zip(labels, top5, strict=True)]
    assert metrics["top5"] == pytest.approx(100 * np.mean(hits))
    assert 0 < metrics["top1"] < metrics["top5"] < 100


def write_images(folder: Path, train: int = 8, test: int = 4, size: int = 32) -> Path:
    """Class folders of noisy colours, which a linear classifier tells apart."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + generator.integers(-40, 40, (size, size, 3))
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(folder / split / name / f"{i}.png")
    return folder


def test_dataset(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    data = AdPEClassificationDataset(root, "train", {"input_size": 32, "crop_pct": 1.0}, num_classes=3)
    assert (len(data), data.classes, data.metainfo) == (24, ("blue", "green", "red"), {"classes": data.classes})
    item = data[9]
    assert item["data_samples"] == {"img_path": str(root / "train/green/1.png"), "index": 9, "label": 1}
    pixels = np.asarray(Image.open(root / "train/green/1.png"), dtype=np.float32).transpose(2, 0, 1) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(item["inputs"].numpy(), (pixels - mean[:, None, None]) / std[:, None, None], rtol=1e-4)
    few = AdPEClassificationDataset(root, "train", {"input_size": 32}, limit=6)
    assert [few[i]["data_samples"]["label"] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    names = {f"train/{path.parent.name}/{path.name}": path.read_bytes() for path in (root / "train").rglob("*.png")}
    archive = AdPEClassificationDataset(
        write_tar(tmp_path / "a.tar", names), "train", {"input_size": 32, "crop_pct": 1.0}
    )
    torch.testing.assert_close(archive[9]["inputs"], item["inputs"])


def test_mistakes_in_the_data(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    with pytest.raises(UserError, match=r"3 class folders \(blue, green, red\), the config says num_classes = 4"):
        AdPEClassificationDataset(root, "train", num_classes=4)
    with pytest.raises(UserError, match=r"no images under 'validation'.*test, train"):
        AdPEClassificationDataset(root, "validation")
    with pytest.raises(UserError, match=r"create_transform says: .*unexpected keyword argument 'crop'"):
        AdPEClassificationDataset(root, "train", {"crop": 3})
    with pytest.raises(UserError, match="limit=0"):
        AdPEClassificationDataset(root, "train", limit=0)
    (root / "train" / "loose.png").write_bytes((root / "train" / "red" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"loose.png lies in no class folder, as do 0 other"):
        AdPEClassificationDataset(root, "train")


def test_mistakes_in_the_model() -> None:
    with pytest.raises(UserError, match="num_classes must be at least 2"):
        AdPEClassifier(**TINY, num_classes=1)
    with pytest.raises(UserError, match="global_pool must be avg"):
        AdPEClassifier(**TINY, num_classes=3, global_pool="max")
    with pytest.raises(UserError, match="token where there is a class token"):
        AdPEFrozenEncoder(**TINY, global_pool="token", class_token=False)
    with pytest.raises(UserError, match="mixup has no place in a linear probe"):
        AdPEClassifier(**TINY, num_classes=3, frozen=True, mixup={"mixup_alpha": 1.0})
    with pytest.raises(UserError, match="unexpected keyword argument 'width'"):
        AdPEClassifier(**TINY, num_classes=3, width=3)
    model = AdPEClassifier(**TINY, num_classes=3, mixup={"mixup_alpha": 1.0})
    with pytest.raises(UserError, match="holds 3 images at once"):
        model(torch.zeros(3, 3, 32, 32), samples(3), mode="loss")
    model = AdPEClassifier(**TINY, num_classes=3, mixup={"mixup_alpha": 1.0}, mixup_batch=4)
    with pytest.raises(UserError, match=r"model\.mixup_batch = 4 .* holds 6 at once"):
        model(torch.zeros(6, 3, 32, 32), samples(6), mode="loss")
    for mistake in ({"mixup_batch": 3, "mixup": {"mixup_alpha": 1.0}}, {"mixup_batch": 4}):
        with pytest.raises(UserError, match="mixup_batch = "):
            AdPEClassifier(**TINY, num_classes=3, **mistake)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("classes") / "data", train=16)


def run(kind: str, data: Path, work: Path, *options: str) -> int:
    """Train a CIFAR-10 config on small folders; 3 classes of 16 and 4 images."""
    shape = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "num_classes=3", f"data_root={data}"]
    batch = {"finetune": ["effective_batch=16"], "linear": ["evaluation.batch_size=16"]}.get(kind, [])
    if kind == "finetune":
        shape += ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
    config = str(ROOT / "configs" / f"cifar10_{kind}.py")
    return train_main([config, "--work-dir", str(work), "--cfg-options", *shape, *batch, *options])


def pretrained(folder: Path) -> Path:
    """An encoder as pretraining exports it."""
    torch.manual_seed(1)
    encoder = create_encoder("adpe_vit_tiny_patch4", embed_dim=32, depth=2, num_heads=2, img_size=32)
    path = folder / "encoder.safetensors"
    save_checkpoint({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, path)
    return path


@pytest.mark.slow
def test_linear_probe_with_augmentation(data: Path, tmp_path: Path) -> None:
    """MAE's probe trains the head alone, through the launcher; resumed and tested it gives the same."""
    shape = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "num_classes=3", f"data_root={data}"]
    shape += ["image_size=32", "model.model=adpe_vit_tiny_patch4", f"pretrained={pretrained(tmp_path)}"]
    shape += ["test_transform.crop_pct=1.0", "val_dataloader.dataset.split=test", "model.global_pool=avg", "blr=60"]
    length = ["epochs=20", "warmup_epochs=2", "effective_batch=16", "default_hooks.checkpoint.interval=10"]
    workers = ("num_workers=0", "persistent_workers=False")
    loaders = [f"{part}_dataloader.{key}" for part in ("train", "val") for key in workers]
    options = ["--cfg-options", *shape, *length, *loaders]
    config = str(ROOT / "configs" / "imagenet/linear_vitb.py")
    assert train_main([config, "--work-dir", str(tmp_path / "run"), *options]) == 0
    (record,), faults = read_records(tmp_path / "run" / "record.jsonl")
    facts = record["protocol"]["facts"]
    assert faults == [] and record["effective_batch"] == 16
    assert (facts["head"], facts["pooling"], facts["epochs"], facts["augmented"]) == ("linear probe", "avg", 20, True)
    assert record["metrics"]["top1"] == 100.0  # colours
    arrays = read_per_image(record["per_image"])
    assert sorted(arrays["images"]) == sorted(f"{name}/{i}.png" for name in COLOURS for i in range(4))
    assert metrics_of(arrays, arrays["images"])["top1"](np.arange(12)) == 100.0
    state = torch.load(tmp_path / "run" / "epoch_20.pth", weights_only=True)["state_dict"]
    torch.manual_seed(1)
    expected = create_encoder("adpe_vit_tiny_patch4", embed_dim=32, depth=2, num_heads=2, img_size=32).state_dict()
    assert all(torch.equal(state[f"backbone.{name}"], tensor) for name, tensor in expected.items())
    out = tmp_path / "metrics.json"
    tested = [config, str(tmp_path / "run" / "epoch_20.pth"), "--work-dir", str(tmp_path / "test"), "--out", str(out)]
    assert evaluate([*tested, *options]) == 0
    assert json.loads(out.read_text()) == {"top1": 100.0}
    resume = ["--resume", str(tmp_path / "run" / "epoch_10.pth")]
    assert train_main([config, "--work-dir", str(tmp_path / "resumed"), *resume, *options]) == 0
    resumed = torch.load(tmp_path / "resumed" / "epoch_20.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in state.items())


@pytest.mark.slow
def test_finetuning_through_the_launcher(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = pretrained(tmp_path)
    options = [f"pretrained={encoder}", "epochs=3", "warmup_epochs=1"]
    assert run("finetune", data, tmp_path / "run", *options) == 0
    log = capsys.readouterr()
    assert "coverage    100.0%" in log.out + log.err
    (record,), _ = read_records(tmp_path / "run" / "record.jsonl")
    assert (record["protocol"]["facts"]["head"], record["protocol"]["facts"]["augmented"]) == ("fine-tuning", True)
    assert 0 <= record["metrics"]["top1"] <= 100
    state = torch.load(tmp_path / "run" / "epoch_3.pth", weights_only=True)["state_dict"]
    assert "backbone.norm.weight" not in state
    assert float(state["backbone.head.weight"].std()) > 6e-5  # it started with 2e-5


@pytest.mark.slow
def test_what_does_not_fit_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(kind: str, *options: str) -> str:
        assert run(kind, data, tmp_path / "run", *options) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text

    assert "3 class folders (blue, green, red), the config says num_classes = 4" in error("linear", "num_classes=4")
    assert "evaluation.k = 49 with 48 training images" in error("knn", "evaluation.k=49")
    assert "evaluation.batch_size = 512 with 48 training images" in error("linear", "evaluation.batch_size=512")
    assert "evaluation.type = 'k-NN'" in error("knn", "evaluation.type=k-NN")
    assert "warmup_epochs = 90" in error("linear", "evaluation.warmup_epochs=90")
    wrong = create_encoder("adpe_vit_tiny_patch4", embed_dim=64, depth=2, num_heads=2, img_size=32)
    save_checkpoint({f"encoder.{n}": t for n, t in wrong.state_dict().items()}, tmp_path / "wide.safetensors")
    assert "embed_dim = 32" in error("linear", f"pretrained={tmp_path / 'wide.safetensors'}")
    assert "pretrained" not in error("finetune", "data_root=nowhere")
