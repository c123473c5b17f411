"""DINO-MM's probe: four class tokens, its published protocol, what it learns of each sensor, and what it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import ROOT, build, config, meta_model
from test_multi_label import write_squares

from adpe.data.views.band_crops import BandCrops
from adpe.engine.launch import train_main
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation
from adpe.evaluations.features.frozen_encoder import AdPEFrozenEncoder
from adpe.evaluations.multi_label.label_heads import LinearLabels
from adpe.leaderboard.records import read_records
from adpe.methods.schedules import seamed_cosine

FULL, SCENES = "configs/multi_label/bigearthnet_vits8.py", "configs/multi_label/scenes14.py"
SMALL = {"model": "adpe_vit_tiny_patch8", "embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}
BRIGHT = {"Pastures": range(12), "Marine waters": (12, 13)}  # labels that one sensor shows


def write_bands(root: Path) -> Path:
    """Noise of 14 bands, brighter in one sensor where an image has its label."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("val", 60)):
        (root / split).mkdir(parents=True)
        rows = {}
        for number in range(count):
            rows[f"{number:03d}"] = [label for label in BRIGHT if rng.random() < 0.4]
            image = rng.integers(60, 120, (36, 36, 14), dtype=np.uint8)
            for label in rows[f"{number:03d}"]:
                image[..., list(BRIGHT[label])] += 60
            np.save(root / split / f"{number:03d}.npy", image)
        (root / f"{split}_labels.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bands(tmp_path_factory.mktemp("bands") / "data")


def run(name: str, data: Path, folder: Path, *options: str) -> dict[str, Any]:
    small = [f"model.{key}={value}" for key, value in SMALL.items()] if name == FULL else []
    crops = ["train_dataloader.dataset.transform.input_size=32", "val_dataloader.dataset.transform.input_size=32",
             "val_dataloader.dataset.transform.resize=36", "evaluation.batch_size=16", "evaluation.epochs=10",
             "evaluation.blr=2", "train_dataloader.num_workers=0", "val_dataloader.num_workers=0",
             f"labels={json.dumps(list(BRIGHT))}"] if name == FULL else []  # fmt: skip
    arguments = [str(ROOT / name), "--work-dir", str(folder), "--cfg-options", f"data_root={data}"]
    assert train_main([*arguments, *small, *crops, *options]) == 0
    records, faults = read_records(folder / "record.jsonl")
    assert not faults
    kept = json.loads((folder / "classes.json").read_text())["average_precision"]
    return {**records[-1], "each": {label: row["linear"] for label, row in kept.items()}}


def test_the_published_protocol() -> None:
    """The linear evaluation of zhu-xlab/DINO-MM: frozen ViT-S/8, four normed class tokens, crops of 128 and 112."""
    cfg, model = config(FULL), meta_model(FULL)
    probe = build_evaluation(cfg.evaluation)
    assert (probe.epochs, probe.blr, probe.batch_size) == (100, 0.01, 4 * 64)
    assert (probe.momentum, probe.weight_decay, probe.known, probe.empty_classes) == (0.9, 0.0, 1.0, "skip")
    told = probe.facts()
    assert (told["augmented"], told["batch norm"]) == (True, False)
    rates = [seamed_cosine(epoch, 100, 0, probe.blr * probe.batch_size / 256, lag=0) for epoch in (0, 25, 50, 100)]
    assert rates == pytest.approx([0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0.0])
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    drawn, still = BandCrops(**train.transform), BandCrops(**val.transform)
    assert (drawn.input_size, drawn.is_training, drawn.scale, drawn.hflip) == (128, True, (0.08, 1.0), 0.5)
    assert (still.input_size, still.is_training, still.resize) == (112, False, 128)
    for data in (train, val):
        assert dict(data.groups) == {"radar": [12, 13], "optical": list(range(12))}
        assert (len(data.classes), data.sensors) == (19, "both")
    encoder = model.backbone
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, encoder.patch_size) == (384, 12, 6, 8)
    assert (encoder.patch_embed.proj.in_channels, tuple(encoder.pos_embed.shape)) == (14, (1, 197, 384))
    assert (encoder.pos_embed_resize, model.global_pool, model.final_norm) == ("dino", "token", True)
    assert tuple(model(torch.empty(2, 14, 128, 128, device="meta")).shape) == (2, 4 * 384)
    layers = LinearLabels(4 * 384, 19, batch_norm=False).layers
    assert isinstance(layers, torch.nn.Linear) and not layers.bias.any()
    assert float(layers.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    alone = config(FULL, {"sensors": "radar"})
    assert {alone[name].dataset.sensors for name in ("train_dataloader", "val_dataloader")} == {"radar"}
    assert "radar alone" in alone.record.dataset


def test_normed_class_tokens_of_four_blocks() -> None:
    """The earlier block first; the last of them is what the probe reads by default."""
    torch.manual_seed(0)
    built = AdPEFrozenEncoder(global_pool="token", blocks="four_last", in_chans=14, **{**SMALL, "depth": 6})
    images = torch.rand(3, 14, 40, 40)
    found = built(images)
    maps = built.backbone.forward_intermediates(
        images, [2, 3, 4, 5], return_prefix_tokens=True, norm=True, intermediates_only=True
    )
    assert torch.allclose(found, torch.cat([token[:, 0] for _, token in maps], dim=1), atol=1e-6)
    last = AdPEFrozenEncoder(global_pool="token", in_chans=14, **{**SMALL, "depth": 6})
    last.load_state_dict(built.state_dict())
    assert torch.allclose(last(images), found[:, -32:], atol=1e-6)
    with pytest.raises(UserError, match="four blocks"):
        AdPEFrozenEncoder(global_pool="token", blocks="four_last", **{**SMALL, "depth": 3})
    with pytest.raises(UserError, match="four_first"):
        AdPEFrozenEncoder(blocks="four_first", **SMALL)


@pytest.mark.slow(20)
def test_each_sensor_tells_its_label(bands: Path, tmp_path: Path) -> None:
    """40 % of the images have a label, which is what is found of one whose sensor is zero."""
    both = run(FULL, bands, tmp_path / "both")
    assert min(both["each"].values()) > 90 and both["metrics"]["mAP_micro"] > 90
    facts = both["protocol"]["facts"]
    assert (facts["pooling"], facts["augmented"], facts["crop"]) == ("token of four_last blocks", True, 32)
    seen = {"optical": "Pastures", "radar": "Marine waters"}
    found = {sensors: run(FULL, bands, tmp_path / sensors, f"sensors={sensors}") for sensors in seen}
    for sensors, label in seen.items():
        assert found[sensors]["each"].pop(label) > 90
        assert max(found[sensors]["each"].values()) < 65
        assert found[sensors]["dataset"] == f"BigEarthNet-MM, {sensors} alone"
    assert len({record["fingerprint"] for record in (both, *found.values())}) == 3


@pytest.mark.slow(20)
def test_the_stand_in_of_coloured_squares(tmp_path: Path) -> None:
    """Fourteen bands of pictures, through the config of the scenes, against labels of other pictures."""
    found = run(SCENES, write_squares(tmp_path / "a"), tmp_path / "right")
    assert found["metrics"]["mAP"] > 80 and found["dataset"] == "embedded_scenes, 14 bands"
    wrong = run(SCENES, write_squares(tmp_path / "b", scrambled=True), tmp_path / "wrong")
    assert wrong["metrics"]["mAP"] < 65


def test_kept_features_of_random_crops_are_refused(bands: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [str(ROOT / FULL), "--work-dir", str(tmp_path), "--cfg-options", f"data_root={bands}",
                 "evaluation.cached=True", "evaluation.batch_size=16", f"labels={json.dumps(list(BRIGHT))}",
                 *[f"model.{key}={value}" for key, value in SMALL.items()]]  # fmt: skip
    assert train_main(arguments) == 2
    assert "cached" in capsys.readouterr().err


def test_an_encoder_of_other_channels_is_refused(tmp_path: Path) -> None:
    import adpe

    encoder = adpe.create_encoder("adpe_vit_tiny_patch8", embed_dim=64, depth=4, num_heads=2, img_size=48)
    path = tmp_path / "encoder.safetensors"
    adpe.save_checkpoint({f"encoder.{key}": value for key, value in encoder.state_dict().items()}, path)
    with pytest.raises(UserError, match="in_chans"):
        build(config(SCENES, {"pretrained": str(path)}))
