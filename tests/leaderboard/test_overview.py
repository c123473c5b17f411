"""One table over several tasks: whose values stand in it, and which differences are told from 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from adpe.errors import UserError
from adpe.leaderboard.overview import overview
from adpe.suites.suite_file import read_suite

SUITE = """
title: two tasks
seeds: [0, 1, 2]
methods: [{name: random start}, {name: MAE+, pretraining: configs/pretrain/cifar10_mae_plus.py}]
tasks:
  - {name: k-NN, config: configs/cifar10/knn.py}
  - {name: attack, config: configs/cifar10/backdoor.py}
overview:
  - {task: k-NN, metric: top1}
  - {task: attack, metric: blocked_asr}
"""


def records(values: dict[str, list[float]], metric: str = "top1") -> list[dict]:
    return [
        {"suite": "mine", "run": f"{run}/seed{seed}", "seed": seed, "metrics": {f"accuracy/{metric}": value}}
        for run, found in values.items()
        for seed, value in enumerate(found)
    ]


def read(folder: Path, text: str = SUITE):
    (folder / "mine.yaml").write_text(text)
    return read_suite(str(folder / "mine.yaml"))


def test_cells_are_means_and_paired_differences(tmp_path: Path):
    suite = read(tmp_path)
    found = records({"random-start/k-nn": [28.0, 29.0, 30.0], "mae-plus/k-nn": [31.0, 32.1, 32.9]})
    found += records({"mae-plus/attack": [10.0, 12.0]}, "blocked_asr")
    lines = overview(suite, found).splitlines()
    assert lines[0] == "| Method | k-NN: top-1 | attack: attack success, blocked (lower is better) |"
    assert lines[2] == "| random start | 29.00 ± 1.00 |  |"
    # 3.0, 3.1 and 2.9: mean 3, standard error 0.0577, t 4.3027 with two degrees of freedom.
    assert lines[3] == r"| MAE+ | 32.00 ± 0.95<br>**+3.00 (+2.75 to +3.25)** | 11.00 ± 1.41 |"
    # Half the interval, 0.248, times 1 + t(0.8) / t(0.975) = 1 + 1.061 / 4.303.
    assert lines[4] == "| *power* | 0.31 |  |" and "over 2 to 3 seeds" in lines[-1]


def test_a_size_of_a_suite_has_the_columns_of_its_tasks(tmp_path: Path):
    suite = read(tmp_path, SUITE + "budgets: {short: {tasks: {k-NN: {}}, text: A short one.}}").sized("short")
    found = [{**one, "suite": "mine_short"} for one in records({"random-start/k-nn": [28.0, 29.0]})]
    assert overview(suite, found).splitlines()[:3] == [
        "| Method | k-NN: top-1 |", "| --- | --- |", "| random start | 28.50 ± 0.71 |",
    ]  # fmt: skip
    assert suite.text == "A short one." and suite.title.startswith("two tasks")


def test_noise_is_not_bold_and_a_repeated_run_counts_once(tmp_path: Path):
    found = records({"random-start/k-nn": [28.0, 29.0, 30.0], "mae-plus/k-nn": [90.0, 29.5, 28.0]})
    found += records({"mae-plus/k-nn": [31.0]})
    text = overview(read(tmp_path), found)
    assert "29.50 ± 1.50<br>+0.50 (-5.71 to +6.71)" in text and "**" not in text


def test_another_suite_has_no_part_in_it(tmp_path: Path):
    found = [{**one, "suite": "other"} for one in records({"random-start/k-nn": [1.0, 2.0, 3.0]})]
    assert overview(read(tmp_path), found) == ""


@pytest.mark.parametrize(
    ("wrong", "named"), [("{task: knn, metric: top1}", "k-NN"), ("{task: k-NN, metric: t1}", "top1")]
)
def test_an_unknown_column_is_named(tmp_path: Path, wrong: str, named: str):
    with pytest.raises(UserError, match=rf"overview\[0\].*{named}"):
        read(tmp_path, SUITE.replace("{task: k-NN, metric: top1}", wrong))
