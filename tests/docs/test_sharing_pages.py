"""The commands and snippets of docs/folder_of_images.md and docs/sharing.md, run as they stand on tiny data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import adpe
from adpe.leaderboard.records import append_record, read_records
from adpe.models.specification import specification_of

ROOT = Path(__file__).resolve().parents[2]
# What makes a training tiny, beside what a page says.
TINY = (
    "model.embed_dim=32 model.num_heads=2 model.decoder_embed_dim=32 model.decoder_depth=1 model.decoder_num_heads=2 "
    "train_dataloader.num_workers=0 custom_hooks.1.interval=1000"
)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(folder: Path, text: str, language: str) -> str:
    """What a block prints, run in a folder where `adpe` is installed; it has to end well."""
    command = folder / "bin/adpe"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore -m adpe.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", text] if language == "bash" else [sys.executable, "-W", "ignore", "-c", text],
        cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow(60)
def test_the_page_on_a_folder_of_images(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (120, 120, 3), dtype=np.uint8)).save(photos / f"{index}.png")
    first, second = blocks("folder_of_images.md", "bash")
    (snippet,) = blocks("folder_of_images.md", "python")
    # The first command as it stands would train for two hours: its two are three seconds here.
    assert "--hours 2" in first
    out = run(
        tmp_path, f"{first.strip().replace('--hours 2', '--hours 0.002')} --cfg-options model.depth=1 {TINY}", "bash"
    )
    work_dir = Path("work_dirs/photos112_adpe_photos")
    assert f"encoder   {work_dir / 'encoder.safetensors'}" in out
    (record,) = read_records(tmp_path / work_dir / "record.jsonl")[0]
    assert 1 <= record["protocol"]["facts"]["epochs"] <= 1600
    assert record["trial"]["measured"][0]["images_per_s"] > 0
    short = {"epochs=200": "epochs=1", "model.depth=6": f"model.depth=1 {TINY}"}
    for old, new in short.items():
        assert old in second
        second = second.replace(old, new)
    run(tmp_path, second, "bash")
    # Python's call goes to the same work directory with other options, and says that.
    options = ", ".join(
        f"{key.replace('.', '__')}={value}" for key, value in (part.split("=") for part in TINY.split())
    )
    assert "epochs=200, model__depth=6" in snippet
    snippet = snippet.replace("hours=2, ", "").replace(
        "epochs=200, model__depth=6", f"epochs=1, model__depth=1, {options}"
    )
    assert run(tmp_path, f"{snippet}\nprint(encoder.embed_dim)", "python").splitlines()[-1] == "32"


@pytest.mark.slow(60)
def test_the_page_on_sharing(tmp_path: Path) -> None:
    model = adpe.create_encoder("adpe_vit_tiny_patch16", depth=2, img_size=32)
    said = specification_of(model, method="MAE", config_sha256="a" * 64, mean=(0.4,) * 3, std=(0.2,) * 3)
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    adpe.save_checkpoint(state, tmp_path / "work_dirs/mae/encoder.safetensors", specification=said)
    record = {
        "schema": 1, "run": "knn", "method": "MAE", "task": "classification", "dataset": "mine", "seed": 0,
        "metrics": {"top1": 31.5}, "config": "configs/imagenet_knn_vitb.py", "time": "2026-01-01T00:00:00+00:00",
        "start": "pretrained", "fingerprint": "0" * 16, "pretrained_from": {"config_sha256": "a" * 64},
    }  # fmt: skip
    append_record(tmp_path / "work_dirs/knn/record.jsonl", record)
    share, to_vit = blocks("sharing.md", "bash")
    run(tmp_path, share, "bash")
    card = yaml.safe_load((tmp_path / "shared/README.md").read_text().split("---\n")[1])
    assert card["license"] == "cc-by-4.0"
    assert card["model-index"][0]["results"][0]["metrics"][0]["value"] == 31.5
    load, with_timm = blocks("sharing.md", "python")
    assert run(tmp_path, f"{load}\nprint(mean, len(encoder.blocks))", "python").splitlines()[-1] == "(0.4, 0.4, 0.4) 2"
    shown = (
        "import torch\nprint([tuple(m.shape) for m in maps(torch.zeros(1, 3, 32, 32))], transform.transforms[-1].mean)"
    )
    last = run(tmp_path, f"{with_timm}\n{shown}", "python").splitlines()[-1]
    assert last.startswith("[(1, 192, 2, 2), (1, 192, 2, 2)]") and "0.4" in last
    run(tmp_path, to_vit, "bash")
    assert {file.name for file in (tmp_path / "shared_vit").iterdir()} >= {"preprocessor_config.json", "config.json"}
