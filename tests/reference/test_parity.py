from __future__ import annotations

import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adpe.errors import UserError
from adpe.methods.adversary import CoordinateAdversary
from adpe.parity.cases import check_case, check_directory, largest_error, relative_error

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
META = json.loads((GOLDENS / "meta.json").read_text())
QUANTITIES = {"trajectory": {"loss", "trajectory"}, "encoder": {"outputs"}}


@pytest.mark.parametrize("case", META["cases"])
def test_golden(case: str) -> None:
    result = check_case(GOLDENS, META, case)
    assert result.errors.keys() == QUANTITIES.get(case.split("_")[0], {"loss", "outputs", "gradients"})
    for name, error in result.errors.items():
        assert error <= (1e-5 if name in ("loss", "outputs") else 1e-4), (name, error)
    assert result.passed
    assert ("noise" in result.remark) == ("rpe_embedding" in case)


def test_every_golden_is_a_case() -> None:
    assert len(META["cases"]) == len(list(GOLDENS.glob("*.npz"))) == 24


def directory_of(folder: Path, case: str, change=None, options: dict | None = None) -> Path:
    """A directory of one golden, its arrays changed by `change`."""
    file = GOLDENS / (f"{case}.npz" if case.startswith(("trajectory", "encoder")) else f"pretrain_{case}.npz")
    with np.load(file) as archive:
        data = {name: archive[name].copy() for name in archive.files}
    if change:
        change(data)
    np.savez(folder / file.name, **data)
    cases = {case: {**META["cases"][case], **(options or {})}}
    (folder / "meta.json").write_text(json.dumps({**META, "cases": cases}))
    return folder


def scaled(name: str, factor: float):
    def change(data: dict) -> None:
        data[name] = data[name] * np.float32(factor)

    return change


def at(name: str, value: float):
    def change(data: dict) -> None:
        data[name].flat[0] = value

    return change


def moved_losses(case: str, factor: float) -> dict:
    losses = list(META["cases"][case]["losses"])
    return {"losses": [*losses[:-1], losses[-1] * factor]}


APE, RPE, ENCODER = "trajectory_ape_coordinate_l2", "trajectory_rpe_coordinate_nonorm", "encoder_rpe_interpolated_32"


@pytest.mark.parametrize(
    ("case", "change", "quantity"),
    [
        ("ape_none", scaled("output.loss", 1 + 1e-4), "loss"),
        ("ape_none", scaled("output.pred", 1 + 1e-4), "outputs"),
        ("ape_none", at("output.mask", 0.5), "outputs"),
        ("ape_none", at("output.pred", math.nan), "outputs"),
        ("rpe_coordinate", scaled("grad.blocks.1.attn.rpe_k.adv_shift", 1 + 1e-3), "gradients"),
        ("rpe_coordinate", at("grad.cls_token", math.nan), "gradients"),
        ("rpe_coordinate", lambda data: data.pop("grad.cls_token"), "gradients"),
        ("rpe_embedding", scaled("grad.blocks.1.attn.rpe_k.adv_token", 1e9), "gradients"),
        (APE, scaled("step3.after.adv_token", 1 + 1e-3), "trajectory"),
        (APE, at("step3.after.adv_token", math.nan), "trajectory"),
        (RPE, scaled("step5.after.decoder_blocks.0.attn.rpe_k.adv_shift", 1 + 1e-3), "trajectory"),
        (RPE, scaled("final.blocks.0.mlp.fc1.weight", 1 + 1e-3), "trajectory"),
        (ENCODER, scaled("output.logits", 1 + 1e-4), "outputs"),
    ],
)
def test_a_changed_golden_fails(case, change, quantity, tmp_path) -> None:
    (result,) = check_directory(directory_of(tmp_path, case, change))
    assert not result.passed
    for name, error in result.errors.items():
        assert (not error <= 1e-5) == (name == quantity), (name, error)


TRANSFER = GOLDENS / "transfer"
TRANSFER_META = json.loads((TRANSFER / "meta.json").read_text())


@pytest.mark.parametrize("case", TRANSFER_META["cases"])
def test_transfer_through_the_shipped_config(case: str) -> None:
    """From the reference's pretraining file, at the same and at another grid, with positions that are trained."""
    pytest.importorskip("mmengine")
    result = check_case(TRANSFER, TRANSFER_META, case)
    assert result.errors["outputs"] <= 1e-5
    assert result.errors["gradients"] <= 1e-4
    assert result.passed


@pytest.mark.parametrize(
    ("name", "quantity"),
    [("output.pos_embed", "outputs"), ("output.features", "outputs"), ("grad.pos_embed", "gradients")],
)
def test_a_changed_transfer_fails(name, quantity, tmp_path) -> None:
    pytest.importorskip("mmengine")
    case = "transfer_rpe_none_56to56"
    with np.load(TRANSFER / f"{case}.npz") as archive:
        data = {key: archive[key].copy() for key in archive.files}
    scaled(name, 1 + 1e-3)(data)
    np.savez(tmp_path / f"{case}.npz", **data)
    cases = {case: TRANSFER_META["cases"][case]}
    (tmp_path / "meta.json").write_text(json.dumps({**TRANSFER_META, "cases": cases}))
    (result,) = check_directory(tmp_path)
    assert not result.passed
    assert {key for key, error in result.errors.items() if not error <= 1e-4} == {quantity}
    (tmp_path / "meta.json").write_text(
        json.dumps({**TRANSFER_META, "cases": {case: {**cases[case], "fine_tuned_as": "ape"}}})
    )
    (result,) = check_directory(tmp_path)
    assert result.errors["outputs"] == math.inf
    (tmp_path / "meta.json").write_text(json.dumps({**TRANSFER_META, "system": "gan", "cases": cases}))
    with pytest.raises(UserError, match="unknown system 'gan'; known are adpe"):
        check_directory(tmp_path)


def test_a_changed_loss_of_a_trajectory_fails(tmp_path) -> None:
    (result,) = check_directory(directory_of(tmp_path, APE, options=moved_losses(APE, 1 + 1e-4)))
    assert not result.passed
    assert result.errors["loss"] == pytest.approx(1e-4, rel=0.05)


def test_a_changed_hyper_parameter_fails(tmp_path) -> None:
    (result,) = check_directory(directory_of(tmp_path, APE, options={"weight_decay": 0.0}))
    assert result.errors["trajectory"] > 1e-4
    assert not result.passed


def test_a_detached_adversary_is_no_rounding_noise(tmp_path, monkeypatch) -> None:
    attached = CoordinateAdversary.patch_positions
    monkeypatch.setattr(CoordinateAdversary, "patch_positions", lambda *arguments: attached(*arguments).detach())
    (result,) = check_directory(directory_of(tmp_path, APE))
    assert not result.passed
    assert result.errors["loss"] > 1e-5


def test_a_trajectory_that_is_noise_must_have_no_effect(tmp_path) -> None:
    """The values that are not compared are put into the model: large ones still change nothing, NaN does."""
    case = "trajectory_rpe_embedding_nonorm"
    names = [f"step2.after.{stage}blocks.0.attn.rpe_k.adv_token" for stage in ("", "decoder_")]

    def change(value: float):
        def apply(data: dict) -> None:
            for name in names:
                data[name] = np.full_like(data[name], value)

        return apply

    (result,) = check_directory(directory_of(tmp_path, case, change(3.0)))
    assert result.passed
    (result,) = check_directory(directory_of(tmp_path, case, change(math.nan)))
    assert result.errors["loss"] == math.inf
    assert not result.passed


def test_errors_that_are_not_numbers_are_never_lost() -> None:
    assert largest_error([0.1, math.nan, 0.2]) == math.inf
    assert largest_error([]) == math.inf
    assert largest_error([0.1, 0.3, 0.2]) == 0.3
    assert relative_error(torch.ones(2), torch.ones(3)) == math.inf
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25


def test_mistakes_are_told(tmp_path) -> None:
    with pytest.raises(UserError, match=r"meta\.json does not exist"):
        check_directory(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json cannot be read"):
        check_directory(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({**META, "cases": {}}))
    with pytest.raises(UserError, match="nothing to check"):
        check_directory(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({**META, "cases": {"ape_none": {}}}))
    with pytest.raises(UserError, match="names the case ape_none"):
        check_directory(tmp_path)
    whole = (GOLDENS / "pretrain_ape_none.npz").read_bytes()
    (tmp_path / "pretrain_ape_none.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"pretrain_ape_none\.npz is not a readable"):
        check_directory(tmp_path)
    directory_of(tmp_path, "ape_none", lambda data: data.pop("output.pred"))
    with pytest.raises(UserError, match=r"output\.pred"):
        check_directory(tmp_path)


def test_a_case_without_an_entry_is_run_too(tmp_path) -> None:
    directory_of(tmp_path, "ape_none")
    shutil.copy(GOLDENS / "encoder_ape_32.npz", tmp_path)
    assert [result.case for result in check_directory(tmp_path)] == ["ape_none", "encoder_ape_32"]
    shutil.copy(GOLDENS / f"{APE}.npz", tmp_path)
    with pytest.raises(UserError, match=APE):
        check_directory(tmp_path)


def test_command_line(tmp_path, capsys) -> None:
    main = runpy.run_path(str(ROOT / "tools" / "check_parity.py"))["main"]
    assert main([str(directory_of(tmp_path, "ape_none"))]) == 0
    assert "all 1 cases agree" in capsys.readouterr().out
    directory_of(tmp_path, "ape_none", scaled("output.loss", 1 + 1e-4))
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1.0e-04" in out
    assert "FAIL" in out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_help_answers() -> None:
    command = [sys.executable, str(ROOT / "tools" / "check_parity.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert run.returncode == 0
    assert "golden" in run.stdout
