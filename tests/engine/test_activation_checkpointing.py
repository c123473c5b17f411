"""`activation_checkpointing` changes the memory of a training and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from torch import Tensor

pytest.importorskip("mmseg")
from built_configs import config
from trainable import batch, trainable

from adpe.engine.launch import train_main
from adpe.engine.settings.activation_checkpointing import checkpoint_activations
from adpe.errors import UserError


def step(modules: Any, amp: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and buffers after one step of the demo's segmentor, and how often its last block ran."""
    cfg = config("configs/demo/segmentation.py")
    cfg.model.backbone.drop_path_rate = 0.2
    model, _ = trainable(cfg)
    calls: list[int] = []
    model.backbone.blocks[3].mlp.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(model, modules)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = model(**model.data_preprocessor(batch(cfg, 48), training=True), mode="loss")
    model.parse_losses(losses)[0].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return gradients, dict(model.named_buffers()), len(calls)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("modules", ["backbone", ["backbone", "neck", "decode_head"]])
def test_gradients_and_statistics_stay_the_same(modules: Any, amp: bool) -> None:
    """Stochastic depth, dropout and BatchNorm included."""
    gradients, buffers, calls = step(modules, amp)
    plain, plain_buffers, once = step([], amp)
    assert (calls, once) == (2, 1)
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradients[name], gradient), name
    assert any("running_mean" in name for name in buffers)
    for name, buffer in plain_buffers.items():
        assert torch.equal(buffers[name], buffer), name


def test_a_run_gives_the_same_weights(tmp_path: Path) -> None:
    path = tiny_training.config(tmp_path, name="tiny.py", iterations=4)
    weights = {}
    for name, options in (("plain", []), ("recomputed", ["activation_checkpointing=linear"])):
        arguments = ["--cfg-options", *options] if options else []
        assert train_main([str(path), "--work-dir", str(tmp_path / name), *arguments]) == 0
        weights[name] = torch.load(tmp_path / name / "iter_4.pth", weights_only=True)["state_dict"]
        assert ("activation_checkpointing" in (tmp_path / name / "tiny.py").read_text()) is bool(options)
    assert all(torch.equal(weights["plain"][name], tensor) for name, tensor in weights["recomputed"].items())


def test_a_module_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = trainable(config("configs/demo/segmentation.py"))
    with pytest.raises(UserError, match="'backbones'"):
        checkpoint_activations(model, "backbones")
    path = tiny_training.config(tmp_path, name="tiny.py", iterations=4)
    arguments = ["--work-dir", str(tmp_path / "w"), "--cfg-options", "activation_checkpointing=layer"]
    assert train_main([str(path), *arguments]) == 2
    assert "'layer'" in capsys.readouterr().err
