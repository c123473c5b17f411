"""TensorBoard by default, W&B and MLflow by an option: curves, the adversary's drift and figures reach each of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adpe.data.scenes import write_scenes
from adpe.engine.launch import train_main
from adpe.engine.trackers import TRACKERS, complete_trackers
from adpe.errors import UserError
from adpe.viz.predictions import read_scalars

ROOT = Path(__file__).resolve().parents[2]
DRIFT = {"adversary/shift_x", "adversary/shift_y"}
FIGURES = {"adversary", "reconstructions"}


def config(**values) -> Config:
    backends = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}]
    return Config({"visualizer": {"type": "Visualizer", "vis_backends": backends}, **values})


def kinds(cfg: Config) -> list[str]:
    complete_trackers(cfg, print)
    return [backend["type"] for backend in cfg.visualizer.vis_backends]


def pretrain(folder: Path, *options: str) -> Path:
    data = write_scenes(folder / "data", num_train=1, num_val=1, num_unlabelled=64, size=48)
    work_dir = folder / "run"
    changes = [f"sources={data}/unlabelled", "epochs=2", "precision=float32", *options]
    hooks = ["custom_hooks.1.interval=1", "custom_hooks.1.scalar_interval=1", "default_hooks.logger.interval=1"]
    arguments = [str(ROOT / "configs/demo/pretrain.py"), "--work-dir", str(work_dir), "--cfg-options"]
    assert train_main([*arguments, *changes, *hooks]) == 0
    return work_dir


@pytest.mark.slow
def test_tensorboard_has_curves_drift_and_figures(tmp_path: Path):
    work_dir = pretrain(tmp_path)
    (folder,) = work_dir.glob("*/vis_data")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    curves = read_scalars(work_dir)
    assert {"loss", "lr", *DRIFT} <= set(events.Tags()["scalars"])
    for name in ("loss", *DRIFT):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [1, 2]
        assert [value for _, value in found] == pytest.approx([value for _, value in curves[name]], rel=1e-5)
    assert set(events.Tags()["images"]) == FIGURES
    assert [event.step for event in events.Images("adversary")] == [1, 2]


def test_an_option_adds_a_tracker_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for tracker, kind in TRACKERS.items():
        cfg = config(tracker=tracker)
        assert kinds(cfg) == kinds(cfg) == ["LocalVisBackend", "TensorboardVisBackend", kind]
    assert kinds(config()) == ["LocalVisBackend", "TensorboardVisBackend"]
    assert kinds(Config({"tracker": "mlflow"})) == ["LocalVisBackend", TRACKERS["mlflow"]]


def test_absent_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for tracker in TRACKERS:
        with pytest.raises(UserError, match=f"package {tracker}, which is not installed: pip install {tracker}"):
            kinds(config(tracker=tracker))
    assert kinds(config()) == ["LocalVisBackend"]
    assert capsys.readouterr().out.startswith("tensorboard is not installed")
    with pytest.raises(UserError, match=r"tracker = 'tensorbord' is unknown; there are wandb, mlflow"):
        kinds(config(tracker="tensorbord"))


@pytest.mark.slow
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    work_dir = pretrain(tmp_path, "tracker=mlflow")
    client = mlflow.MlflowClient((work_dir / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("adpe").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["method"]) == ("FINISHED", "run", "AdPE")
    curves = read_scalars(work_dir)
    for name in ("loss", *DRIFT):
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == [(step, pytest.approx(value, rel=1e-5)) for step, value in curves[name]]
    for name in FIGURES:
        pictures = [Path(item.path).name for item in client.list_artifacts(run.info.run_id, name)]
        assert pictures == ["00000001.png", "00000002.png"]


@pytest.mark.slow
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    work_dir = pretrain(tmp_path, "tracker=wandb")
    (file,) = work_dir.glob("*/vis_data/wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    for name in ("loss", *DRIFT, *FIGURES, "iteration"):
        assert name.encode() in written
    for name in FIGURES:
        assert len(list(file.parent.glob(f"files/media/images/{name}_*.png"))) == 2
