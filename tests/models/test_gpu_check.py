"""benchmarks/gpu_check.py in its reduced form, which a CPU runs too."""

import json
import sys

import pytest
import torch

from benchmarks import gpu_check


def test_reduced_stages_pass_and_are_recorded(tmp_path) -> None:
    out = tmp_path / "records.jsonl"
    assert gpu_check.main(["--reduced", "--stages", "attention", "configs", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["attention"] * 4 + ["configs"] * 2
    assert all(line["passed"] and line["reduced"] and line["device"] for line in lines)


def test_a_failing_stage_does_not_stop_the_others_and_is_told(tmp_path, monkeypatch) -> None:
    def broken(setting):
        yield {"passed": True}
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(gpu_check.STAGES, "parity", broken)
    monkeypatch.setitem(gpu_check.STAGES, "configs", lambda setting: iter([{"passed": True}]))
    out = tmp_path / "records.jsonl"
    assert gpu_check.main(["--reduced", "--stages", "parity", "configs", "--out", str(out)]) == 1
    assert {json.loads(line)["stage"] for line in out.read_text().splitlines()} == {"parity", "configs"}


def test_without_a_gpu_only_the_reduced_form_runs(capsys, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        gpu_check.main([])
    assert error.value.code == 2
    assert "--reduced" in capsys.readouterr().err


def test_goldens_that_need_mmseg_are_named_where_it_is_missing(monkeypatch) -> None:
    # Its parts too, which other tests of the process may have imported.
    for name in {"mmseg", *(name for name in sys.modules if name.startswith("mmseg."))}:
        monkeypatch.setitem(sys.modules, name, None)
    result = gpu_check.compared(
        gpu_check.ROOT / "tests" / "goldens_systems" / "linear_segmentation", torch.device("cpu")
    )
    assert result["not_compared_for_want_of"] == {"miou": "mmseg"}
    assert result["passed"] and not result["failed"] and result["agree"] == result["cases"] - 1


def test_a_golden_that_cannot_be_computed_fails_alone(monkeypatch) -> None:
    def broken(*_):
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr("adpe.parity.method._check_trajectory", broken)
    (result,) = gpu_check.parity(gpu_check.Setting(torch.device("cpu"), reduced=True))
    assert not result["passed"]
    assert result["agree"] == 12
    assert all(case.startswith("trajectory_") for case in result["failed"])
