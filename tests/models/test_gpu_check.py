"""benchmarks/gpu_check.py in its reduced form, which a CPU runs too."""

import json

import pytest

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
    out = tmp_path / "records.jsonl"
    assert gpu_check.main(["--reduced", "--stages", "parity", "configs", "--out", str(out)]) == 1
    assert {json.loads(line)["stage"] for line in out.read_text().splitlines()} == {"parity", "configs"}


def test_without_a_gpu_only_the_reduced_form_runs(capsys, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        gpu_check.main([])
    assert error.value.code == 2
    assert "--reduced" in capsys.readouterr().err
