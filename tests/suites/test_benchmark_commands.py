"""tools/benchmark.py from its command line: tables, comparison, claims, metafiles, README. Records are made up."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from adpe.errors import UserError
from adpe.files import ROOT
from adpe.leaderboard import readme
from adpe.leaderboard.claims import HEADER, NEAR_MISS, NOT_RUN, check_claims, lines, sources
from adpe.leaderboard.compare import compare, select
from adpe.leaderboard.metafile import write_metafiles
from adpe.leaderboard.published import read_published
from adpe.suites.commands import main
from adpe.suites.expected import expected_protocol
from adpe.suites.suite_file import read_suite

UPERNET = {"backbone": "adpe_vit_base_patch16", "head": "UPerHead", "crop": [512, 512], "iterations": 160000}


def record(method: str = "MAE", seed: int = 0, miou: float | None = 48.0, **changes: Any) -> dict[str, Any]:
    run = f"{method.lower()}/upernet/{changes.get('sweep', 'lr 0.0001')}/seed{seed}"
    return {
        "schema": 1, "run": run, "suite": "adpe_ade20k",
        "method": method, "task": "segmentation", "dataset": "ADE20K", "start": "pretrained", "seed": seed,
        "metrics": {"mIoU": miou, "aAcc": 80.0}, "config": "configs/ade20k_upernet_vitb.py", "config_sha256": "c",
        "checkpoint": "w/iter.pth", "checkpoint_sha256": f"{method}{seed}", "fingerprint": UPERNET,
        "precision": "bfloat16", "effective_batch": 16, "sweep": "lr 0.0001", "wall_time_s": 3600.0,
        "hardware": {"device": "A100", "processes": 8, "cores": 96}, "peak_memory_bytes": 2**31,
        "time": "2026-01-01T00:00:00+00:00", "pretraining_epochs": 1600, **changes,
    }  # fmt: skip


def write(path: Path, *records: dict[str, Any], torn: str = "") -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records) + torn)
    return str(path)


def test_every_claim_is_shown_with_its_sources() -> None:
    suite = read_suite("adpe_ade20k")
    verdicts = check_claims([suite], [record(miou=48.0)], expected_protocol)
    assert {verdict.state for verdict in verdicts} == {NEAR_MISS, NOT_RUN}
    assert all(len(line) == len(HEADER) for line in lines(verdicts))
    assert lines(verdicts)[0][:3] == ("MAE ViT-B/16, upernet, ADE20K", "48.13 mIoU", "")
    assert "48.13 mIoU: open-mmlab/mmsegmentation configs/mae/README.md." in sources(verdicts)
    imagenet = check_claims([read_suite("adpe_imagenet"), read_suite("adpe_imagenet_vitl")], [], expected_protocol)
    assert {verdict.state for verdict in imagenet} == {NOT_RUN}
    assert sorted(verdict.expected for verdict in imagenet) == [83.57, 83.9, 84.1, 84.2, 84.2, 84.3, 84.4, 85.87, 86.3]
    rows = {entry["id"]: entry for entry in read_published() if "id" in entry}
    without = replace(suite, claims=(), missing=((rows["mae-vitb-imagenet"], "no config yet"),))
    (verdict,) = check_claims([without], [], expected_protocol)
    assert (verdict.state, verdict.expected, verdict.note) == (NOT_RUN, 83.57, "no config yet")


def per_image(path: Path, seed: int, quality: float) -> str:
    draw = np.random.default_rng(seed)
    union = draw.integers(50, 100, (30, 3))
    intersection = (union * np.clip(quality + draw.normal(0, 0.05, union.shape), 0, 1)).astype(np.int64)
    np.savez(path, images=[f"{i}.jpg" for i in range(30)], classes=list("abc"), intersection=intersection, union=union)
    return str(path)


def test_compare_over_seeds_over_images_and_neither(tmp_path: Path) -> None:
    good = [record("AdPE", seed, 50.0 + seed / 10) for seed in range(3)]
    bad = [record("MAE", seed, 48.0) for seed in range(3)]
    text = compare(good, bad)
    assert text == [
        "Segmentation on ADE20K (backbone adpe_vit_base_patch16, head UPerHead, crop 512x512, iterations 160000, "
        "recorded protocol before version 2):",
        "  AdPE (pretrained, lr 0.0001) is 2.10 mIoU above MAE (pretrained, lr 0.0001) (95% interval 1.85 to 2.35, "
        "paired t over 3 seeds): more than seed noise.",
    ]
    lone = compare(good[:1], bad[:1])
    assert "One seed: no interval" in lone[1] and "not recorded (adpe/upernet/lr 0.0001/seed0 and mae/" in lone[2]
    files = [per_image(tmp_path / f"{name}.npz", 1, quality) for name, quality in (("a", 0.6), ("b", 0.5))]
    a, b = record("AdPE", 0, 60.0, per_image=files[0]), record("MAE", 0, 50.0, per_image=files[1])
    over_images = compare([a], [b], resamples=200)
    assert over_images[2].startswith("  Over the images of seed 0: AdPE (pretrained, lr 0.0001) is 1")
    assert "paired bootstrap over 30 images): more than the choice of images explains" in over_images[2]
    Path(files[1]).unlink()
    assert "no longer there" in compare([a], [b])[2]
    with pytest.raises(UserError, match="no task and data set under one protocol each in common"):
        compare([a], [record("MAE", dataset="COCO")])
    with pytest.raises(UserError, match="one side is several rows of segmentation on ADE20K; choose one: AdPE"):
        compare([a, record("AdPE", sweep="lr 0.0002")], [b])
    assert "no usable value of MAE" in compare([a], [record("MAE", miou=None)])[1]


def test_words_that_select_records(tmp_path: Path) -> None:
    records = [record("AdPE", 0), record("AdPE", 1), record("MAE", 0)]
    assert len(select("AdPE", records)) == 2 == len(select("AdPE (pretrained, lr 0.0001)", records))
    assert select("mae/upernet/lr 0.0001/seed0", records) == [records[2]]
    write(tmp_path / "record.jsonl", records[1])
    assert select(str(tmp_path), []) == [records[1]]
    with pytest.raises(UserError, match=r"'AdP' names no run and no row .* there are: .*AdPE \(pretrained"):
        select("AdP", records)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no .*record\.jsonl; a run writes it at its end"):
        select(str(tmp_path / "empty"), records)


def test_tables_report_what_is_wrong_and_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "r.jsonl",
        record(seed=0, miou=48.0),
        record(seed=0, miou=48.0),
        record(seed=1, miou=None),
        {key: value for key, value in record(seed=2).items() if key != "seed"},
        torn='{"schema": 1, "ru',
    )
    before = Path(path).read_bytes()
    assert main(["table", "--records", path, "--format", "csv", "--no-published"]) == 0
    (line, *_) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (line["method"], line["mean"], line["seeds"], line["sweep"]) == ("MAE", "48.0", "0", "lr 0.0001")
    assert main(["table", "--records", path, "--no-published", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "r.jsonl:4: seed is None, which is not of the expected type; skipped" in text
    assert "r.jsonl:5: not a JSON line, truncated while it was written; skipped" in text
    assert "(seed 1): mIoU is not finite; left out of the mean." in text
    assert Path(path).read_bytes() == before
    # A method's name with markup stays text in every format.
    hostile = write(tmp_path / "h.jsonl", record("<b>x</b> & y_1"))
    out = tmp_path / "t.tex"
    assert main(["table", "--records", hostile, "--no-published", "--format", "latex", "--out", str(out)]) == 0
    assert r"\textless{}b\textgreater{}x" in out.read_text() and r"\& y\_1" in out.read_text()


def test_mistakes_cost_a_line_and_status_2(tmp_path: Path) -> None:
    for arguments, words in (
        (["run", "adpe_ade"], "error: suite adpe_ade does not exist. There are: adpe_ade20k"),
        (["run", "small", "--seeds", "9", "--dry-run"], "error: suite small has no seed 9; it has 0, 1, 2."),
        (["table", "--records", "none.jsonl"], "error: --records none.jsonl does not exist."),
        (["table", "--no-published", "--records", str(tmp_path)], "error: there is nothing to show"),
        (["compare", "A", "B", "--records", str(tmp_path)], "error: 'A' names no run and no row"),
        (["metafile", "--out", str(tmp_path), "--records", str(tmp_path)], "error: no record names a checkpoint"),
        (["table", "--records", str(tmp_path), "--baseline", "BEiT v9"], "error: baseline 'BEiT v9' names no row"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            errors = io.StringIO()
            patch.setattr(sys, "stderr", errors)
            patch.chdir(tmp_path)
            assert main(arguments) == 2, arguments
        assert errors.getvalue().startswith(words) and errors.getvalue().count("\n") == 1, errors.getvalue()


def test_the_dry_run_is_a_script_from_start_to_finish(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "run", "adpe_ade20k", "--dry-run"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200, check=True)
    text = answer.stdout.splitlines()
    commands = [line for line in text if line and not line.startswith("#")]
    assert len(commands) == 7 + 7 * 6 and all(line.startswith("tools/dist_train.sh configs/") for line in commands)
    first = next(line for line in commands if "upernet" in line)
    encoder = next(word for word in first.split() if word.startswith("pretrained=")).removeprefix("pretrained=")
    assert commands.index(first) > 0 and f"--work-dir {Path(encoder).parent} " in commands[0]
    assert any(line.startswith("# expected of MAE, upernet at lr 0.0001: mIoU 48.13 ± 1") for line in text)
    assert any("8,904 RTX 3090 hours (212 each" in line for line in text)
    assert any("cost not known" in line for line in text)
    assert not (tmp_path / "work_dirs").exists()
    assert subprocess.run(["bash", "-n"], input=answer.stdout, text=True, check=False).returncode == 0


def test_metafiles_are_what_openmmlab_reads(tmp_path: Path) -> None:
    records = [record("MAE", 0), record("MAE", 1), record("AdPE", 0, checkpoint_sha256=None)]
    paths = write_metafiles(records, tmp_path)
    index, content = (yaml.safe_load((tmp_path / name).read_text()) for name in ("model-index.yml", "metafile.yml"))
    assert paths == [tmp_path / "metafile.yml", tmp_path / "model-index.yml"] and index == {"Import": ["metafile.yml"]}
    names = [model["Name"] for model in content["Models"]]
    assert names == ["adpe_ade20k_mae_upernet_lr_0.0001_seed0", "adpe_ade20k_mae_upernet_lr_0.0001_seed1"]
    model = content["Models"][0]
    assert model["In Collection"] == content["Collections"][0]["Name"] and model["Config"] == records[0]["config"]
    assert model["Results"] == [
        {"Task": "Semantic Segmentation", "Dataset": "ADE20K", "Metrics": {"mIoU": 48.0, "pixel accuracy": 80.0}}
    ]
    assert model["Metadata"]["Training Resources"] == "8x A100" and model["Metadata"]["Training Memory (GB)"] == 2.0


def test_the_readme_is_up_to_date() -> None:
    assert readme.update(readme.README, check=True), f"{readme.README} is stale: run tools/benchmark.py readme"


def test_a_stale_readme_is_noticed_and_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{readme.START}\nout of date\n{readme.END}\n\nEnd.\n")
    assert not readme.update(path, check=True) and "out of date" in path.read_text()
    assert not readme.update(path) and readme.update(path, check=True)
    text = path.read_text()
    assert text.startswith("# Title\n") and text.endswith("\n\nEnd.\n") and "out of date" not in text
    assert "| AdPE RPE coordinate ViT-B/16, fine-tuning, ImageNet-1K | 84.40 top-1 |" in text
    assert "50.70 mIoU (implied)" in text
    # A new record makes it stale.
    monkeypatch.setattr(readme, "RECORDS", tmp_path)
    write(tmp_path / "a.jsonl", record(miou=48.0))
    assert not readme.update(path, check=True)
    assert "48.00" in readme.generated() and "#### Segmentation on ADE20K" in readme.generated()
    path.write_text("# Title\n")
    with pytest.raises(UserError, match=r"README\.md must have the lines"):
        readme.update(path)


def test_collected_records_name_files_from_their_suite_and_are_added_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, kept = tmp_path / "small", tmp_path / "kept.jsonl"
    suite.mkdir()
    inside = record(checkpoint=str(suite / "mae" / "iter_9.pth"), per_image=str(suite / "mae" / "per_image.npz"))
    elsewhere = record(seed=1, checkpoint="/home/somebody/iter_9.pth", per_image=None)
    write(suite / "records.jsonl", inside, elsewhere, torn='{"schema": 1, "ru')
    assert main(["collect", str(suite), "--out", str(kept)]) == 0
    assert "2 of 2 records added" in capsys.readouterr().out
    assert main(["collect", str(suite), "--out", str(kept)]) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert "0 of 2 records added" in printed and "records.jsonl:3: not a JSON line" in printed
    one, two = map(json.loads, kept.read_text().splitlines())
    assert one == {**inside, "checkpoint": "mae/iter_9.pth", "per_image": "mae/per_image.npz"}
    assert two == {**elsewhere, "checkpoint": "iter_9.pth"}
    assert main(["collect", str(tmp_path / "nothing")]) == 2
    assert "expected the folder of a suite" in capsys.readouterr().err
