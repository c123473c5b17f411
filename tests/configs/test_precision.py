"""bfloat16 under every shipped config, and the precision that a run takes: asked for, measured, resumed, recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import CONFIGS, config
from mmengine.config import Config
from shrunk_configs import shrunk
from trainable import trainable

import adpe.engine  # noqa: F401  registers, and guards mmcv's operators
from adpe.engine.launch import train_main
from adpe.engine.settings.precision import (
    WORTHWHILE,
    AdPEAutocastOptimWrapper,
    bfloat16_speed,
    precision_of,
    request_precision,
    settle_precision,
)
from adpe.errors import UserError

TRAINED = [name for name in CONFIGS if not config(name).get("evaluation")]
_losses: dict[str, list[float]] = {}


def two_iterations(cfg: Config, data: Any) -> list[float]:
    cfg.optim_wrapper.optimizer.pop("fused", None)
    model, wrapper = trainable(cfg)
    assert type(wrapper) is AdPEAutocastOptimWrapper
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and module.weight.requires_grad:
            module.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    losses = [float(model.train_step(data, wrapper)["loss"]) for _ in range(2)]
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return losses


@pytest.mark.parametrize("name", TRAINED)
def test_amp_trains_every_config(name: str, tmp_path: Path) -> None:
    """``--amp`` for two iterations on the CPU; models that are the same when shrunk are trained once."""
    cfg, data = shrunk(name, tmp_path)
    request_precision(cfg, "bf16")
    key = json.dumps([cfg.model.to_dict(), cfg.optim_wrapper.to_dict()["constructor"] if "constructor" in
                      cfg.optim_wrapper else None, sorted(data)], sort_keys=True, default=str)  # fmt: skip
    if key not in _losses:
        _losses[key] = two_iterations(cfg, data)
    assert len(_losses[key]) == 2
    assert all(torch.isfinite(torch.tensor(_losses[key])))


# Which precision -----------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str, path: Path | None = None, **values: Any) -> tuple[dict[str, Any], Path]:
    """Train the tiny regression. Returns its record and its config."""
    extra = f"precision = {values.pop('precision', None)!r}"
    path = path or tiny_training.config(folder, name="tiny.py", extra=extra, **values)
    assert train_main([str(path), "--work-dir", str(folder / "run"), *arguments]) == 0
    return json.loads((folder / "run" / "record.jsonl").read_text().splitlines()[-1]), path


def test_measured_precision_is_the_faster_one_and_recorded(tmp_path: Path) -> None:
    cfg = Config({"precision": "auto", "optim_wrapper": {"type": "OptimWrapper"}, "record": {"method": "x"}})
    request_precision(cfg)
    state = torch.random.get_rng_state()
    line = settle_precision(cfg)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert line is not None
    ratio = float(line.split(" times")[0].rsplit(" ", 1)[1])
    assert cfg.precision == ("bfloat16" if ratio >= WORTHWHILE else "float32") == precision_of(cfg.optim_wrapper)
    assert cfg.record.precision_reason in line
    assert settle_precision(cfg) is None
    record, _ = run(tmp_path, precision="auto")
    assert record["precision"] in ("float32", "bfloat16") and "times as fast" in record["precision_reason"]


def test_speed_is_a_ratio_of_times() -> None:
    ratio = bfloat16_speed(0.05)
    assert 0 < ratio < 100


@pytest.mark.parametrize(("asked", "arguments", "expected"), [
    ("bfloat16", (), "bfloat16"), ("float32", (), "float32"), (None, (), "float32"),
    ("float32", ("--amp",), "bfloat16"), ("auto", ("--amp",), "bfloat16"),
    ("auto", ("--cfg-options", "precision=float32"), "float32"),
])  # fmt: skip
def test_precision_that_is_asked_for(asked: str | None, arguments: tuple, expected: str, tmp_path: Path) -> None:
    record, _ = run(tmp_path, *arguments, precision=asked, iterations=2)
    assert record["precision"] == expected
    assert "precision_reason" not in record


def test_amp_of_a_strangers_float16_config(tmp_path: Path) -> None:
    """mmdet's ``AmpOptimWrapper(loss_scale="dynamic")``, which asks for a GPU, in bfloat16."""
    extra = "optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')"
    path = tiny_training.config(tmp_path, name="tiny.py", extra=extra, iterations=2)
    record, _ = run(tmp_path, "--amp", path=path)
    assert record["precision"] == "bfloat16"
    record, _ = run(tmp_path, "--cfg-options", "precision=float32", path=path)
    assert record["precision"] == "float32"


def test_a_seed_gives_the_same_in_each_precision(tmp_path: Path) -> None:
    """Twice the same weights in bfloat16, others in float32."""
    weights = {}
    for name, precision in (("a", "bfloat16"), ("b", "bfloat16"), ("c", "float32")):
        (tmp_path / name).mkdir()
        run(tmp_path / name, precision=precision)
        file = torch.load(tmp_path / name / "run" / "iter_12.pth", weights_only=True)
        assert file["meta"]["precision"] == precision
        weights[name] = file["state_dict"]["linear.weight"]
    assert torch.equal(weights["a"], weights["b"])
    assert not torch.equal(weights["a"], weights["c"])


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_resumed_run_keeps_its_precision(precision: str, tmp_path: Path) -> None:
    """Whatever is measured on the machine that resumes it."""
    _, path = run(tmp_path, "--cfg-options", f"precision={precision}", precision="auto", iterations=6)
    record, _ = run(tmp_path, "--resume", "--cfg-options", "iterations=8", path=path)
    assert record["precision"] == precision
    assert "precision_reason" not in record


@pytest.mark.parametrize(("values", "amp", "message"), [
    ({"precision": "half"}, None, "precision = 'half'"),
    ({"precision": "float16"}, None, "precision=float16 needs a GPU"),
    ({}, "fp16", "--amp fp16 needs a GPU"),
    ({"precision": "auto", "type": "OptimWrapperDict"}, None, "optim_wrapper.type = 'OptimWrapperDict'"),
])  # fmt: skip
def test_mistakes(values: dict[str, str], amp: str | None, message: str) -> None:
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU")
    kind = values.pop("type", "OptimWrapper")
    with pytest.raises(UserError, match=message):
        request_precision(Config({**values, "optim_wrapper": {"type": kind}}), amp)
