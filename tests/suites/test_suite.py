"""Suites: what a file may hold, the runs that follow from it, and the committed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adpe.errors import UserError
from adpe.files import ROOT
from adpe.option_values import option_text
from adpe.suites.suite import expand, suite_files
from adpe.suites.suite_file import read_suite

MINIMAL: dict[str, Any] = {
    "title": "Two methods",
    "gpus": 8,
    "seeds": [0, 1],
    "methods": [
        {"name": "MAE", "pretraining": "configs/pretrain/mae_vitb_1600e.py", "epochs": 1600},
        {"name": "random start"},
    ],
    "tasks": [
        {
            "name": "upernet",
            "config": "configs/ade20k_upernet_vitb.py",
            "sweep": {"lr": ["1e-4", 2e-4]},
            "reported": {"lr": "2e-4"},
            "sweep_seeds": [0],
        }
    ],
    "claims": [
        {
            "method": "MAE", "task": "upernet", "reproduces": "mae-vitb-ade20k-mmseg", "tolerance": {"mIoU": 1.0},
            "tolerance_source": "a thread",
        }
    ],
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


def first(key: str, **changes: Any) -> dict[str, Any]:
    items = json.loads(json.dumps(MINIMAL[key]))
    items[0].update(changes)
    return {key: items}


def test_runs_of_a_suite(tmp_path: Path) -> None:
    runs = expand(read_suite(write(tmp_path)), Path("runs/two"))
    # Every seed at the reported point, the other point with the first seed only; pretraining before what needs it; a
    # seed is over before the next begins.
    assert [run.name for run in runs] == [
        "mae/pretraining/seed0",
        "mae/upernet/lr-0.0001/seed0",
        "mae/upernet/lr-0.0002/seed0",
        "random-start/upernet/lr-0.0001/seed0",
        "random-start/upernet/lr-0.0002/seed0",
        "mae/pretraining/seed1",
        "mae/upernet/lr-0.0002/seed1",
        "random-start/upernet/lr-0.0002/seed1",
    ]
    run = runs[6]
    assert (run.needs, run.seed, run.sweep) == ("mae/pretraining/seed1", 1, "lr 0.0002")
    assert run.command(Path("runs/two")) == [
        "tools/dist_train.sh", "configs/ade20k_upernet_vitb.py", "8", "--work-dir",
        "runs/two/mae/upernet/lr-0.0002/seed1", "--seed", "1", "--resume", "--cfg-options", "lr=0.0002",
        "pretrained=runs/two/mae/pretraining/seed1/encoder.safetensors", "record.suite=two",
        "record.run=mae/upernet/lr-0.0002/seed1", "record.method=MAE", "record.start=pretrained",
        "record.sweep=lr 0.0002", "record.pretraining_epochs=1600", "record_file=runs/two/records.jsonl",
    ]  # fmt: skip
    random = runs[-1]
    assert random.needs is None and random.options["record.start"] == "random" and "pretrained" not in random.options
    (alone,) = [
        run for run in expand(read_suite(write(tmp_path)), Path("x"), gpus=1, seeds=[1]) if run.task == "pretraining"
    ]
    assert alone.command(Path("x"))[:3] == ["python", "tools/train.py", "configs/pretrain/mae_vitb_1600e.py"]


def test_one_pretraining_for_all_seeds_and_suites(tmp_path: Path) -> None:
    path = write(tmp_path, pretraining_seeds=[0], shared_pretraining="vitb")
    runs = expand(read_suite(path), Path("runs/two"), task_options={"data_root": "/d"})
    pretraining = [run for run in runs if run.task == "pretraining"]
    assert [run.name for run in pretraining] == ["mae/pretraining/seed0"]
    assert pretraining[0].work_dir(Path("runs/two")) == Path("runs/vitb/mae/pretraining/seed0")
    assert "record_file=runs/vitb/records.jsonl" in pretraining[0].arguments(Path("runs/two"))
    assert pretraining[0].options["record.suite"] == "vitb" and "data_root" not in pretraining[0].options
    starts = {run.options.get("pretrained") for run in runs if run.method == "MAE" and run.task == "upernet"}
    assert starts == {"runs/vitb/mae/pretraining/seed0/encoder.safetensors"}
    assert all(run.options["data_root"] == "/d" for run in runs if run.task == "upernet")


def test_values_as_options() -> None:
    assert [option_text(v) for v in (5e-5, True, None, [1, "a"], 512, "x y")] == [
        "5e-05", "True", "None", "[1,'a']", "512", "x y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (first("methods", pretraining="configs/pretrain/mae_vitb_1600.py"),
         r"methods\[0\]: pretraining: config 'configs/pretrain/mae_vitb_1600.py' does not exist. Did you mean .*1600e"),
        (first("tasks", config="configs/none.py"), r"tasks\[0\]: config: config 'configs/none.py' does not exist"),
        (first("tasks", config=None), r"tasks\[0\]: config: config None does not exist"),
        ({"seeds": None}, r"seeds must be a list of seeds such as \[0, 1, 2\], found None"),
        ({"seeds": []}, "seeds must be a list"),
        ({"seeds": [0, 0]}, "seeds has a seed twice"),
        ({"seeds": [0, "1"]}, "seeds must be a list"),
        ({"gpus": 0}, "gpus must be a positive number, found 0"),
        ({"title": ""}, "title must be text"),
        ({"metods": []}, "unknown key 'metods'; known are methods"),
        ({"methods": []}, "methods is missing"),
        ({"methods": {"name": "MAE"}}, "methods must be a list, found dict"),
        ({"methods": [{"name": "MAE+"}, {"name": "mae plus"}], "claims": []}, "methods has 'mae-plus' twice"),
        ({"methods": [{"name": "a,b"}], "claims": []}, "may have letters, digits, spaces"),
        (first("methods", checkpoint="x.pth"), "pretraining and checkpoint exclude each other"),
        (first("methods", options={"model": {"a": 1}}), "options.model must be a plain value"),
        (first("tasks", sweep={"lr": []}), "sweep.lr must be a list of numbers"),
        (first("tasks", sweep={"lr": [".nan"]}), "sweep.lr must be a positive number"),
        (first("tasks", reported={"lr": 3e-4}), "is no point of the sweep"),
        (first("tasks", sweep_seeds=[7]), r"sweep_seeds \[7\] are not among the suite's seeds"),
        (first("claims", method="BEiT"), r"claims\[0\]: method 'BEiT' is unknown; there are"),
        (first("claims", reproduces="mae-vitb-ade"), "reproduces 'mae-vitb-ade' is unknown; there are mae-vitb-ade20k"),
        (first("claims", tolerance={"mAP": 1.0}), "tolerance: unknown key 'mAP'"),
        (first("claims", tolerance={"mIoU": float("nan")}), "tolerance.mIoU must be a positive number"),
        (first("claims", tolerance_source=None), "tolerance_source must be text"),
        (first("claims", at={"lr": 1.0}), "is no point of the sweep of upernet"),
        ({"data": {"scenes": {"train": 5}}}, "data.scenes.val must be a positive number"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"two\.yaml.*{message}"):
        read_suite(write(tmp_path, **changes))


def test_unknown_suites_and_code_in_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suite adpe_ade does not exist\. There are: adpe_ade20k"):
        read_suite("adpe_ade")
    path = tmp_path / "code.yaml"
    path.write_text(f"title: !!python/object/apply:os.system ['touch {tmp_path}/owned']\n")
    with pytest.raises(UserError, match=r"code\.yaml, line 1: not valid YAML: .*nothing is executed"):
        read_suite(path)
    assert not (tmp_path / "owned").exists()
    path.write_text("- a\n")
    with pytest.raises(UserError, match="expected a mapping, found list"):
        read_suite(path)
    with pytest.raises(UserError, match="suite two has no seed 5; it has 0, 1"):
        expand(read_suite(write(tmp_path)), Path("x"), seeds=[5])


@pytest.mark.parametrize("name", suite_files())
def test_committed_suites(name: str) -> None:
    from adpe.engine.config import read_config

    suite = read_suite(name)
    runs = expand(suite, Path("work_dirs/suites") / name)
    assert len({run.name for run in runs}) == len(runs) >= 2 * len(suite.methods) - 1
    for method in suite.methods:
        if method.pretraining:
            cfg = read_config(ROOT / method.pretraining)
            assert method.options.get("epochs", cfg.train_cfg.max_epochs) == method.epochs, method.name
            position, adversary = cfg.model.get("position", "absolute"), cfg.model.get("adversary")
            position = method.options.get("model.position", position)
            adversary = method.options.get("model.adversary", adversary)
            expected = "relative_interpolated" if (position, adversary) == ("relative", "coordinate") else position
            given = method.transfer.get("position", method.transfer.get("model.backbone.position"))
            # Without an option the position is what the file says of its encoder.
            assert given in (expected, None), method.name
    for claim in suite.claims:
        config = next(task.config for task in suite.tasks if task.name == claim.task)
        recorded = read_config(ROOT / config).record
        assert (claim.published["task"], claim.published["dataset"]) == (recorded.task, recorded.dataset)
        assert set(claim.tolerance) <= set(claim.published["metrics"])


def test_the_sweep_of_ade20k_is_the_declared_one() -> None:
    suite = read_suite("adpe_ade20k")
    assert [point["lr"] for point in suite.tasks[0].points] == [5e-5, 1e-4, 2e-4, 3e-4]
    runs = [run for run in expand(suite, Path("w")) if run.method == "AdPE RPE coordinate" and run.task == "upernet"]
    assert sorted((run.sweep, run.seed) for run in runs if run.sweep != "lr 0.0002") == [
        ("lr 0.0001", 0), ("lr 0.0003", 0), ("lr 5e-05", 0),
    ]  # fmt: skip
    assert [run.seed for run in runs if run.sweep == "lr 0.0002"] == [0, 1, 2]
    both = {task.name: task.config for task in read_suite("adpe_coco").tasks}
    assert {"maskrcnn", "cascade"} <= {name.split(" ")[0] for name in both}


def test_a_task_may_name_its_seeds_and_methods(tmp_path: Path) -> None:
    names = [
        run.name for run in expand(read_suite(write(tmp_path, **first("tasks", seeds=[1], methods=["MAE"]))), Path("r"))
    ]
    assert names == ["mae/pretraining/seed1", "mae/upernet/lr-0.0002/seed1"]
    for wrong in ({"seeds": [2]}, {"methods": ["MAE+"]}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            read_suite(write(tmp_path, **first("tasks", **wrong)))


def test_a_budget_is_the_suite_in_another_size(tmp_path: Path) -> None:
    budget = {
        "seeds": [4],
        "epochs": 3,
        "pretraining": {"epochs": 3},
        "tasks": {"upernet": {"max_iters": 7}},
        "jobs": 2,
    }
    suite = read_suite(write(tmp_path, budgets={"short": budget}))
    assert suite.budgets["short"].jobs == 2
    sized = suite.sized("short")
    assert sized.name == "two_short"
    runs = expand(sized, Path("runs/two_short"))
    assert {run.seed for run in runs} == {4}
    assert runs[0].options["epochs"] == 3 and runs[0].options["record.pretraining_epochs"] == 3
    assert all(run.options["max_iters"] == 7 for run in runs[1:])
    assert "max_iters" not in expand(suite, Path("runs/two"))[1].options
    with pytest.raises(UserError, match=r"long.*short"):
        suite.sized("long")


def test_a_budget_without_tasks_on_scenes_brings_none() -> None:
    suite = read_suite("study_cifar10")
    assert suite.data is not None and suite.sized("gpu10").data is None
    assert read_suite("real_weights").sized("quick").data is not None


def test_a_budget_keeps_the_data_that_a_method_takes_to_its_transfers(tmp_path: Path) -> None:
    scenes = {"scenes": {"train": 4, "val": 2, "unlabelled": 8, "size": 48}}
    methods = [{"name": "A", "transfer": {"data_root": "{data}"}}]
    suite = read_suite(write(tmp_path, data=scenes, methods=methods, claims=[], budgets={"short": {"jobs": 2}}))
    assert suite.sized("short").data is not None
