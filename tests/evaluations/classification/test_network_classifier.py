"""GC ViT, SP-ViT and saliency-guided attention as classifiers: recorded logits, files, learning, runs, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import ROOT, config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from sklearn.datasets import load_digits
from test_classification import write_images
from torch import Tensor

import adpe.engine  # noqa: F401
from adpe.checkpoints.loading import save_checkpoint
from adpe.engine.launch import test_main as evaluate
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.classification import AdPEClassifier
from adpe.evaluations.network_classifier import AdPENetworkClassifier
from adpe.leaderboard.records import read_records
from adpe.models.factory import create_encoder
from adpe.parity.cases import GoldenCase
from adpe.transfer.backbones.gcvit_backbone import AdPEGCViT
from adpe.transfer.backbones.spvit_backbone import AdPESPViT

GOLDENS = ROOT / "tests" / "goldens_systems"
GC_VIT: dict[str, Any] = {
    "network": "gcvit", "variant": None, "dim": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4),
    "window_size": (4, 4, 2, 1),
}  # fmt: skip
SP_VIT: dict[str, Any] = {
    "network": "spvit", "variant": None, "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2,
    "prior_blocks": 2, "stem": 8,
}  # fmt: skip
SALIENCY: dict[str, Any] = {
    "model": "adpe_vit_tiny_patch4", "img_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2,
    "head_init_std": 0.02, "saliency": {"type": "spectral_residual", "ratio": 0.5},
}  # fmt: skip


def golden(system: str, name: str) -> GoldenCase:
    meta = json.loads((GOLDENS / system / "meta.json").read_text())
    return GoldenCase(name, GOLDENS / system / f"{name}.npz", meta)


def started(path: Path, classes: int = 5, allow: list[str] | None = None, **options: Any) -> AdPENetworkClassifier:
    """A classifier after `init_weights` from a file."""
    init_cfg = {"type": "Pretrained", "checkpoint": str(path), **({"allow_missing": allow} if allow else {})}
    model = AdPENetworkClassifier(num_classes=classes, init_cfg=init_cfg, **options)
    model.init_weights()
    return model.eval()


def test_recorded_logits_of_gc_vit(tmp_path: Path) -> None:
    """The authors' names, read from a file; logits in tensor mode are those of the network's own forward."""
    case = golden("gcvit", "network_classification")
    said: Any = case.options
    index = {"levels.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4)}
    torch.save({"state_dict": {**case.group("param."), **index}}, tmp_path / "gcvit.pth")
    sizes = {"dim": said["dim"], "depths": said["depths"], "heads": said["heads"], "window_size": said["windows"]}
    model = started(tmp_path / "gcvit.pth", network="gcvit", variant=None, **sizes)
    images = case.arrays["input.images"]
    torch.testing.assert_close(model(images), case.arrays["output"], rtol=1e-5, atol=1e-6)
    assert torch.equal(model(images), model.backbone(images))
    # At other windows the tables are resized, and the rest is as it was.
    other = started(tmp_path / "gcvit.pth", network="gcvit", variant=None, **{**sizes, "window_size": (4, 4, 4, 2)})
    assert other.backbone.levels[0].blocks[0].attn.relative_position_bias_table.shape == (49, 1)
    assert torch.equal(other.backbone.head.weight, model.backbone.head.weight)


@pytest.mark.parametrize("dense_head", [False, True])
def test_recorded_logits_of_sp_vit(dense_head: bool, tmp_path: Path) -> None:
    case = golden("spvit", "dense_and_mixtoken" if dense_head else "network")
    said: Any = case.options
    torch.save({"model": {f"module.{n}": t for n, t in case.group("param.").items()}}, tmp_path / "spvit.pth")
    sizes = {name: said[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "skip_lam")}
    sizes |= {"network": "spvit", "variant": None, "prior_blocks": said["local_up_to_layer"]}
    model = started(tmp_path / "spvit.pth", said["num_classes"], dense_head=dense_head, **sizes)
    images = case.arrays["input.images"]
    expected = case.arrays["output.eval_logits" if dense_head else "output"]
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(images), model.backbone(images))
    if dense_head:  # left out if it is not asked for
        whole = started(tmp_path / "spvit.pth", said["num_classes"], **sizes)
        assert not torch.equal(whole(images), model(images))


def test_recorded_logits_of_saliency_guided_attention() -> None:
    """Choice of the patches and masked pass of the fine-tuned encoder, head on the class token."""
    case = golden("sgt", "ours_float64_32x32_p8")
    said: Any = case.options
    model = AdPEClassifier(
        "adpe_vit_tiny_patch8", said["classes"], "token", img_size=32, embed_dim=said["dim"], depth=said["depth"],
        num_heads=said["heads"], mlp_ratio=said["mlp_ratio"], learned_pos_embed=True,
        saliency={"ratio": said["keep_ratio"], "mean": said["mean"], "std": said["std"]},
    ).eval()  # fmt: skip
    state = {n: t.float() for n, t in case.group("param.").items()}
    model.load_state_dict({n if n.startswith("head.") else f"backbone.{n}": t for n, t in state.items()})
    mean, std = (torch.tensor(said[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    images = (case.arrays["input.images"].float() - mean) / std
    torch.testing.assert_close(model(images), case.arrays["output.logits"].float(), rtol=1e-5, atol=1e-5)
    model.backbone.mask_at_test = False
    assert (model(images) - case.arrays["output.logits"]).abs().max() > 1e-2


@pytest.mark.parametrize("options", [GC_VIT, SP_VIT], ids=["gcvit", "spvit"])
@pytest.mark.parametrize("size", [(33, 20), (1, 1), (48, 32)])
def test_images_of_any_size_do_not_mix(options: dict[str, Any], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = AdPENetworkClassifier(num_classes=3, **options).eval()
    images = torch.randn(3, 3, *size)
    samples = {"label": torch.tensor([0, 1, 2]), "index": torch.arange(3), "img_path": ["a", "b", "c"]}
    with torch.no_grad():
        told = model(images, samples, mode="predict")
        alone = torch.cat([model(image[None]) for image in images])
    scores = torch.stack([one["scores"] for one in told])
    torch.testing.assert_close(scores, alone.softmax(1), rtol=1e-4, atol=1e-6)
    assert [(one["label"], one["img_path"]) for one in told] == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.parametrize("options", [GC_VIT, SP_VIT], ids=["gcvit", "spvit"])
def test_layer_decay_goes_by_the_networks_depths(options: dict[str, Any]) -> None:
    model = AdPENetworkClassifier(num_classes=3, **options)
    wrapper = {
        "type": "OptimWrapper", "constructor": "AdPELayerDecayOptimWrapperConstructor",
        "optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05}, "paramwise_cfg": {"layer_decay_rate": 0.5},
    }  # fmt: skip
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    spared = model.backbone.no_weight_decay()
    for name, parameter in model.backbone.named_parameters():
        depth, depths = model.backbone.layer_depth(name)
        decay = 0.0 if parameter.ndim == 1 or name in spared else 0.05
        assert rates[id(parameter)] == (0.5 ** (depths - 1 - depth), decay), name
    assert rates[id(model.backbone.head.weight)][0] == 1.0


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    source = AdPENetworkClassifier(num_classes=7, **GC_VIT)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "seven.pth")
    with pytest.raises(
        UserError, match=r"seven\.pth: .* 2 of another shape.*head\.weight.*classes than 3.*allow_missin"
    ):
        started(tmp_path / "seven.pth", 3, **GC_VIT)
    logger = MMLogger.get_instance("networks", log_file=str(tmp_path / "log.txt"))
    kept = started(tmp_path / "seven.pth", 3, ["head.*"], **GC_VIT)
    for handler in logger.handlers:
        handler.flush()
    assert "allow_missing" in (tmp_path / "log.txt").read_text()
    assert torch.equal(kept.backbone.norm.weight, source.backbone.norm.weight)
    assert kept.backbone.head.weight.shape == (3, 64)
    part = {name: tensor for name, tensor in source.state_dict().items() if "levels.2" not in name}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth: .* missing.*levels\.2"):
        started(tmp_path / "part.pth", 7, **GC_VIT)
    with pytest.raises(UserError, match=r"seven\.pth: .* unknown"):
        started(tmp_path / "seven.pth", 7, **SP_VIT)
    other = AdPENetworkClassifier(num_classes=3, **{**SP_VIT, "img_size": 64})
    torch.save(other.state_dict(), tmp_path / "large.pth")
    with pytest.raises(UserError, match=r"64 patches.*Set img_size=64"):
        started(tmp_path / "large.pth", 3, **SP_VIT)


@pytest.mark.parametrize(("options", "message"), [
    ({"network": "swin"}, "network='swin' is none of gcvit, spvit"), ({"num_classes": 1}, "num_classes must be at lea"),
    ({"variant": "huge"}, "variant='huge'"), ({"colour": 1}, "colour"), ({"heads": (3, 3, 3, 3)}, "heads"),
    ({"dense_norms": True}, "dense_norms"), ({"mixup_batch": 4}, "AdPENetworkClassifier: mixup_batch = 4"),
    ({"init_cfg": {"checkpoint": "x.pth"}}, "AdPENetworkClassifier: init_cfg must be"),
])  # fmt: skip
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdPENetworkClassifier(**{"num_classes": 3, **GC_VIT, **options}).init_weights()


def digits() -> tuple[Tensor, Tensor]:
    """Scans (N, 3, 16, 16) of 0, 1 and 2, and their labels."""
    scans = load_digits(n_class=3)
    images = torch.from_numpy(scans.images).float() / 8 - 1
    return torch.nn.functional.interpolate(images[:, None].expand(-1, 3, -1, -1), size=16), torch.from_numpy(
        scans.target
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gcvit", "spvit", "saliency"])
def test_learning(kind: str) -> None:
    """A few steps: accuracy on new digits that the same network with scrambled labels misses, as it does the loss."""
    images, labels = digits()
    (images, new), (labels, wanted) = images.split(360), labels.split(360)
    reached = {}
    for scrambled in (False, True):
        torch.manual_seed(0)
        if kind == "saliency":
            model: Any = AdPEClassifier(num_classes=3, **SALIENCY)
        else:
            sizes = {**SP_VIT, "img_size": 16, "patch_size": 4} if kind == "spvit" else GC_VIT
            model = AdPENetworkClassifier(num_classes=3, **sizes)
        given = labels[torch.randperm(len(labels))] if scrambled else labels
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(60):
            chosen = torch.randint(len(images), (48,))
            loss = model(images[chosen], {"label": given[chosen]}, mode="loss")["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            reached[scrambled] = 100 * float((model(new).argmax(1) == wanted).float().mean())
    assert reached[True] < 70 < 85 < reached[False], reached


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("classes") / "data", train=16)


def options_of_run(data: Path, **options: Any) -> list[str]:
    """A config of classification on three colours of 16 and 4 images, without workers."""
    shared = {
        "num_classes": 3, "data_root": data, "image_size": 32, "effective_batch": 16,
        "test_transform.crop_pct": 1.0, "val_dataloader.dataset.split": "test",
        "default_hooks.checkpoint.interval": 2, "precision": "float32",
    }  # fmt: skip
    workers = {f"{part}_dataloader.{key}": value for part in ("train", "val")
               for key, value in (("num_workers", 0), ("persistent_workers", False))}  # fmt: skip
    return ["--cfg-options", *(f"{name}={value}" for name, value in {**shared, **workers, **options}.items())]


@pytest.mark.slow(15)
@pytest.mark.parametrize("network", ["gcvit", "spvit"])
def test_a_run_and_its_checkpoint(network: str, data: Path, tmp_path: Path) -> None:
    """The ImageNet configs, shrunk: record; the average is what is saved and tested; resumed alike; read by others."""
    name, sizes, own = {
        "gcvit": ("imagenet_gcvit_tiny", GC_VIT, {"model.mixup_batch": 8}),
        "spvit": ("imagenet_spvit_s", SP_VIT, {"train_dataloader.dataset.transform.re_prob": 0.0}),
    }[network]
    given = {f"model.{k}": str(v).replace(" ", "") for k, v in sizes.items() if k not in ("network", "img_size")}
    given |= {"epochs": 4, "warmup_epochs": 1, "lr": 5e-3, "custom_hooks.0.momentum": 0.3}
    options = options_of_run(data, **given, **own)
    file = str(ROOT / "configs" / "backbones" / f"{name}.py")
    assert train_main([file, "--work-dir", str(tmp_path / "run"), *options]) == 0
    (record,), faults = read_records(tmp_path / "run" / "record.jsonl")
    assert faults == [] and record["method"] == {"gcvit": "GC ViT", "spvit": "SP-ViT"}[network]
    assert (record["task"], record["start"], record["iterations"]) == ("classification", "random", 12)
    saved = torch.load(record["checkpoint"], weights_only=True)
    head = saved["state_dict"]["backbone.head.weight"]
    assert not torch.equal(head, saved["ema_state_dict"]["module.backbone.head.weight"])
    out = tmp_path / "metrics.json"
    tested = [file, record["checkpoint"], "--work-dir", str(tmp_path / "test"), "--out", str(out)]
    assert evaluate([*tested, *options]) == 0
    assert json.loads(out.read_text())["top1"] == pytest.approx(record["metrics"]["top1"])
    resume = ["--resume", str(tmp_path / "run" / "epoch_2.pth")]
    assert train_main([file, "--work-dir", str(tmp_path / "resumed"), *resume, *options]) == 0
    resumed = torch.load(tmp_path / "resumed" / "epoch_4.pth", weights_only=True)
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(resumed[part][key], tensor) for key, tensor in saved[part].items())
    # A classifier and a dense backbone that start from it.
    again = started(Path(record["checkpoint"]), 3, **sizes)
    assert torch.equal(again.backbone.head.weight, head)
    dense: Any = AdPEGCViT if network == "gcvit" else AdPESPViT
    init_cfg = {"type": "Pretrained", "checkpoint": record["checkpoint"]}
    backbone = dense(**{k: v for k, v in sizes.items() if k != "network"}, init_cfg=init_cfg)
    backbone.init_weights()
    loaded = backbone.net.state_dict()
    shared = [key for key in loaded if f"backbone.{key}" in saved["state_dict"]]
    assert len(shared) > 50 and all(torch.equal(loaded[key], saved["state_dict"][f"backbone.{key}"]) for key in shared)


@pytest.mark.slow
def test_finetuning_of_a_pretrained_encoder_under_saliency(data: Path, tmp_path: Path) -> None:
    """The config, shrunk: the encoder's file loads whole, and masks in training and at test are in the protocol."""
    torch.manual_seed(1)
    encoder = create_encoder("adpe_vit_tiny_patch8", embed_dim=32, depth=2, num_heads=2, img_size=32)
    file = tmp_path / "encoder.safetensors"
    save_checkpoint({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, file)
    name = str(ROOT / "configs" / "backbones" / "imagenet_saliency_vits.py")
    records = []
    for masked in (False, True):
        options = options_of_run(
            data, pretrained=file, epochs=2, warmup_epochs=1, lr=1e-3, mask_at_test=masked,
            **{"model.model": "adpe_vit_tiny_patch8", "model.embed_dim": 32, "model.depth": 2, "model.num_heads": 2},
        )  # fmt: skip
        assert train_main([name, "--work-dir", str(tmp_path / str(masked)), *options]) == 0
        (record,), _ = read_records(tmp_path / str(masked) / "record.jsonl")
        records.append(record)
    assert [record["start"] for record in records] == ["pretrained", "pretrained"]
    assert records[0]["fingerprint"] != records[1]["fingerprint"]
    states = [torch.load(record["checkpoint"], weights_only=True)["state_dict"] for record in records]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_controls_of_the_small_configs() -> None:
    """One variable names the chooser, for classification and for the scenes."""
    for name, node in (("backbones/cifar10_saliency", "model"), ("demo/segmentation_saliency", "model.backbone")):
        for chooser in ("spectral_residual", "centre", "random"):
            cfg = config(f"configs/{name}.py", {"chooser": chooser})
            part = cfg.model if node == "model" else cfg.model.backbone
            assert part.saliency.type == chooser
            built = MODELS.build(part)
            assert (built if node != "model" else built.backbone).chooser_name == chooser
