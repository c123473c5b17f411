"""The benchmark of every method's step runs on the configs, those that need files of tokens or parts too."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmengine")
from benchmarks.speed import method_cost

MAE, PARTS, TOKENS = (
    f"configs/pretrain/{name}.py" for name in ("cifar10_mae", "masks/cifar10_semmae", "targets/cifar10_mapet")
)


@pytest.mark.slow(15)
def test_costs_of_methods_with_frozen_encoders():
    found = method_cost.costs([MAE, PARTS, TOKENS], 1, 1, torch.device("cpu"))
    assert list(found) == [MAE, PARTS, TOKENS]
    assert 0 < found[MAE] < found[TOKENS]  # 17 tokens of 65 in the encoder, against rows for 161


def test_a_config_of_something_else_is_refused(capsys: pytest.CaptureFixture[str]):
    assert method_cost.main(["configs/cifar10/linear.py"]) == 2
    assert method_cost.main([MAE, "--steps", "0"]) == 2
    assert "configs/cifar10/linear.py" in capsys.readouterr().err
