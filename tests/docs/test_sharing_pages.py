"""The commands and snippets of docs/folder_of_images.md and docs/sharing.md, run as they stand on tiny data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typed_commands import blocks, typed

import adpe
from adpe.leaderboard.records import append_record, read_records
from adpe.models.specification import specification_of

ROOT = Path(__file__).resolve().parents[2]
# What makes a training tiny, beside what a page says.
TINY = (
    "model.embed_dim=32 model.num_heads=2 model.decoder_embed_dim=32 model.decoder_depth=1 model.decoder_num_heads=2 "
    "train_dataloader.num_workers=0 custom_hooks.1.interval=1000"
)


def python(text: str) -> dict[str, Any]:
    """The variables of a snippet."""
    variables: dict[str, Any] = {}
    exec(text, variables)
    return variables


@pytest.mark.slow(15)
def test_the_page_on_a_folder_of_images(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (120, 120, 3), dtype=np.uint8)).save(photos / f"{index}.png")
    first, second = blocks("folder_of_images.md", "bash")
    (snippet,) = blocks("folder_of_images.md", "python")
    assert "--hours 2" in first  # in which these images would be seen 1,600 times
    typed(f"{first.strip().replace('--hours 2', '--hours 0.001')} --cfg-options model.depth=1 {TINY}")
    work_dir = tmp_path / "work_dirs/photos112_adpe_photos"
    (record,) = read_records(work_dir / "record.jsonl")[0]
    assert 1 <= record["protocol"]["facts"]["epochs"] < 1600
    assert record["trial"]["measured"][0]["images_per_s"] > 0
    assert "epochs=200 model.depth=6" in second and "epochs=200, model__depth=6" in snippet
    typed(second.replace("epochs=200 model.depth=6", f"epochs=1 model.depth=1 {TINY}"))
    written = (tmp_path / "work_dirs/mine/encoder.safetensors").stat().st_mtime_ns
    options = ", ".join(part.replace(".", "__") for part in TINY.split())
    found = python(snippet.replace("epochs=200, model__depth=6", f"epochs=1, model__depth=1, {options}"))
    assert (found["encoder"].embed_dim, len(found["encoder"].blocks)) == (32, 1)
    assert found["file"].stat().st_mtime_ns == written


@pytest.mark.slow
def test_the_page_on_sharing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = adpe.create_encoder("adpe_vit_tiny_patch16", depth=2, img_size=32)
    said = specification_of(model, method="MAE", config_sha256="a" * 64, mean=(0.4,) * 3, std=(0.2,) * 3)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    adpe.save_checkpoint(state, tmp_path / "work_dirs/mae/encoder.safetensors", specification=said)
    record = {
        "schema": 1, "run": "knn", "method": "MAE", "task": "classification", "dataset": "mine", "seed": 0,
        "metrics": {"top1": 31.5}, "config": "configs/imagenet/knn_vitb.py", "time": "2026-01-01T00:00:00+00:00",
        "start": "pretrained", "fingerprint": "0" * 16, "pretrained_from": {"config_sha256": "a" * 64},
    }  # fmt: skip
    append_record(tmp_path / "work_dirs/knn/record.jsonl", record)
    share, to_vit = blocks("sharing.md", "bash")
    typed(share)
    card = yaml.safe_load((tmp_path / "shared/README.md").read_text().split("---\n")[1])
    assert card["license"] == "cc-by-4.0"
    assert card["model-index"][0]["results"][0]["metrics"][0]["value"] == 31.5
    load, with_timm = blocks("sharing.md", "python")
    found = python(load)
    assert (found["mean"], len(found["encoder"].blocks)) == ((0.4,) * 3, 2)
    found = python(with_timm)
    maps = found["maps"](torch.zeros(1, 3, 32, 32))
    assert [tuple(one.shape) for one in maps] == [(1, 192, 2, 2)] * 2
    assert found["transform"].transforms[-1].mean.tolist() == pytest.approx([0.4] * 3)
    typed(to_vit)
    assert {file.name for file in (tmp_path / "shared_vit").iterdir()} >= {"preprocessor_config.json", "config.json"}
