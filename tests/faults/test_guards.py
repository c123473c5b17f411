"""A loss that is not finite stops the run and says where; scalars reach the log without a read per iteration."""

from __future__ import annotations

import json

import pytest
import tiny_training
import torch

from adpe.engine.hooks.guards import NonFiniteLossError, _image_paths, _plain_batch
from adpe.engine.launch import train_main
from adpe.engine.settings.precision import AdPEAutocastOptimWrapper
from adpe.errors import UserError


def test_nan_loss_stops_with_iteration_rates_images_and_the_batch(tmp_path, capsys):
    path = tiny_training.config(
        tmp_path, length=24, batch_size=4, interval=1, extra="train_dataloader['dataset']['bad'] = 15",
    )  # fmt: skip
    assert train_main([str(path), "--work-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    seen = (tmp_path / "run" / "seen.txt.0").read_text().splitlines()
    saved = list((tmp_path / "run").glob("nonfinite_iter_*.pt"))
    assert len(saved) == 1
    iteration = int(saved[0].stem.rpartition("_")[2])
    # The hook that notes what was seen comes after the guard, so the last line is the iteration before.
    assert len(seen) == iteration - 1
    assert error.startswith(
        f"error: the loss is not finite at iteration {iteration}: loss = nan. Learning rates: lr 0.0"
    )
    assert "images/015.jpg" in error and str(saved[0]) in error
    batch = torch.load(saved[0], weights_only=True)
    assert batch["iter"] == iteration and "images/015.jpg" in batch["img_path"]
    bad = batch["img_path"].index("images/015.jpg")
    assert batch["batch"]["inputs"][bad].isnan().all()
    assert not batch["batch"]["inputs"][bad - 1].isnan().any()
    # The last checkpoint is from before.
    assert (tmp_path / "run" / "last_checkpoint").read_text().endswith(f"iter_{iteration - 1}.pth")


def test_nonfinite_error_is_a_user_error():
    assert issubclass(NonFiniteLossError, UserError)


def test_image_paths_and_plain_batch_see_into_data_elements():
    from mmengine.structures import BaseDataElement

    element = BaseDataElement(metainfo={"img_path": "b.jpg", "scale": (1, 2)}, boxes=torch.ones(1, 4))
    batch = {"inputs": [torch.zeros(3)], "data_samples": [element, {"img_path": ["c.jpg", "d.jpg"]}]}
    assert list(_image_paths(batch)) == ["b.jpg", "c.jpg", "d.jpg"]
    first = _plain_batch(batch)["data_samples"][0]
    assert first["img_path"] == "b.jpg" and first["scale"] == [1, 2] and torch.equal(first["boxes"], torch.ones(1, 4))


def test_every_loss_reaches_the_log(tmp_path):
    path = tiny_training.config(tmp_path, name="logged.py")
    assert train_main([str(path), "--work-dir", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in next((tmp_path / "run").glob("*/vis_data/scalars.json")).open()]
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(logged) == [2, 4, 6, 8, 10, 12]
    hub = torch.load(tmp_path / "run" / "iter_12.pth", weights_only=True)["message_hub"]["log_scalars"]["train/loss"]
    history = hub["history"][0]
    assert len(history) == 12
    assert logged[4] == pytest.approx(history[:4].mean().item())


def test_autocast_on_cpu_computes_in_bfloat16():
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    wrapper = AdPEAutocastOptimWrapper(optimizer=optimizer, accumulative_counts=2)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    inputs = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.Linear(8, 4)
    expected.load_state_dict(model.state_dict())
    expected(inputs).square().mean().backward()
    for _ in range(2):
        with wrapper.optim_context(model):
            loss = model(inputs).float().square().mean()
        wrapper.update_params(loss)
    assert seen == [(torch.float32, torch.bfloat16)] * 2
    # One step of the mean of two equal gradients, which are float32's to bfloat16's precision, and are not equal to it.
    step = expected.weight - 0.5 * expected.weight.grad
    torch.testing.assert_close(model.weight, step, rtol=0, atol=0.01)
    assert not torch.equal(model.weight, step) and not torch.allclose(model.weight, expected.weight, atol=0.01)
    with pytest.raises(ValueError, match="AmpOptimWrapper"):
        AdPEAutocastOptimWrapper(optimizer=optimizer, dtype="float16")


def test_amp_option_switches_the_wrapper(tmp_path, capsys):
    path = tiny_training.config(tmp_path, name="amp.py", iterations=2)
    assert train_main([str(path), "--work-dir", str(tmp_path / "run"), "--amp"]) == 0
    record = json.loads((tmp_path / "run" / "record.jsonl").read_text())
    assert record["precision"] == "bfloat16"
    if not torch.cuda.is_available():
        assert train_main([str(path), "--work-dir", str(tmp_path / "half"), "--amp", "fp16"]) == 2
        assert "--amp fp16 needs a GPU" in capsys.readouterr().err
