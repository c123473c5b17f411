"""What adpe/engine/mmengine_internals.py relies on in mmengine."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from adpe.engine.mmengine_internals import (
    CascadeStages,
    StepCheckpointHook,
    accumulation,
    between_steps,
    coco_ground_truth,
    end_workers,
    failed_build,
    is_lazy_config,
    mark_loaded,
    set_iterator,
    set_position,
)


def test_lazy_configs_are_told_apart(tmp_path: Path) -> None:
    texts = {"a = 1": False, "_base_ = './b.py'": False, "import os\na = os.sep": False}
    texts |= {"from mmengine.config import read_base\nwith read_base():\n    from .b import *": True}
    for number, (text, lazy) in enumerate(texts.items()):
        path = tmp_path / f"config_{number}.py"
        path.write_text(text)
        assert is_lazy_config(path) is lazy, text


@pytest.mark.parametrize("by_epoch", [False, True])
def test_a_training_loop_goes_on_from_a_set_position(tmp_path: Path, by_epoch: bool) -> None:
    cfg = Config.fromfile(tiny_training.config(tmp_path, by_epoch=by_epoch, iterations=4))
    cfg.work_dir, cfg.default_hooks, cfg.val_dataloader, cfg.val_cfg, cfg.val_evaluator = (
        str(tmp_path),
        {},
        None,
        None,
        None,
    )
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    set_position(runner, 3, 18) if by_epoch else set_position(runner, 0, 3)
    assert (runner.epoch, runner.iter) == ((3, 18) if by_epoch else (0, 3))
    assert (runner.message_hub.get_info("epoch"), runner.message_hub.get_info("iter")) == (runner.epoch, runner.iter)
    runner.train_loop.run_iter = lambda *_: None  # type: ignore[method-assign]
    assert runner.train_loop.max_iters == (24 if by_epoch else 4)


def small_runner(folder: Path, **changes: Any) -> Runner:
    """mmengine's own Runner of a tiny training without validation."""
    cfg = Config.fromfile(tiny_training.config(folder, iterations=4))
    without = {"val_dataloader": None, "val_cfg": None, "val_evaluator": None, "custom_hooks": []}
    for name, value in {"work_dir": str(folder), "default_hooks": {"checkpoint": None}, **without, **changes}.items():
        cfg[name] = value
    return Runner.from_cfg(cfg)


def test_a_model_that_is_marked_as_loaded_is_not_loaded_again(tmp_path: Path) -> None:
    runner = small_runner(tmp_path, load_from=str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError):
        runner.load_or_resume()
    mark_loaded(runner)
    runner.load_or_resume()


def test_a_loop_takes_its_batches_from_the_iterator_that_is_set(tmp_path: Path) -> None:
    runner = small_runner(tmp_path)
    loop = runner._train_loop = runner.build_train_loop(runner._train_loop)
    batches, seen = [{"batch": index} for index in range(loop.max_iters)], []

    def note(batch: Any) -> None:
        seen.append(batch)
        loop._iter += 1

    assert set_iterator(loop, iter(batches))
    loop.run_iter, runner.hooks[:] = note, []
    loop.run()
    assert seen == batches and len(seen) == 4
    assert not set_iterator(object(), iter(()))


def test_gradients_between_steps_are_told() -> None:
    def wrapper(counts: int) -> OptimWrapper:
        return OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), accumulative_counts=counts)

    single = wrapper(3)
    pair = OptimWrapperDict(a=wrapper(1), b=wrapper(2))
    assert (accumulation(single), accumulation(pair)) == (3, 2)
    told = []
    for _ in range(6):
        single.update_params(single.param_groups[0]["params"][0].sum())
        told.append(between_steps(single))
    assert told == [True, True, False] * 2
    assert not between_steps(pair)
    pair["b"].update_params(pair["b"].param_groups[0]["params"][0].sum())
    assert between_steps(pair)


class Refusing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


def test_what_the_registry_was_building_is_in_its_stack_frame() -> None:
    MODELS.register_module(module=Refusing, force=True)
    with pytest.raises(TypeError) as unknown_argument:
        MODELS.build({"type": "Refusing", "depth": 1})
    failed = failed_build(unknown_argument.value)
    assert failed is not None and failed.component is Refusing
    with pytest.raises(KeyError) as unknown_name:
        MODELS.build({"type": "Refusin"})
    failed = failed_build(unknown_name.value)
    assert failed is not None and failed.registry is not None and "Refusing" in failed.registry.module_dict
    with pytest.raises(ZeroDivisionError) as other:
        print(1 / 0)
    assert failed_build(other.value) is None


def test_mmengines_checkpoint_hook_saves_through_save_step(tmp_path: Path) -> None:
    saved: list[tuple[int, dict[str, Any]]] = []

    class Noting(StepCheckpointHook):
        def save_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
            saved.append((step, dict(meta)))
            super().save_step(runner, step, meta)

    runner = small_runner(tmp_path)
    runner.register_hook(Noting(interval=2, by_epoch=False))
    runner.train()
    assert saved == [(2, {"epoch": 0, "iter": 2}), (4, {"epoch": 0, "iter": 4})]
    assert (tmp_path / "iter_4.pth").is_file() and (tmp_path / "last_checkpoint").read_text().endswith("iter_4.pth")


def test_the_ground_truth_of_a_coco_metric(tmp_path: Path) -> None:
    metrics = pytest.importorskip("mmdet.evaluation")
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": [{"id": 7}], "annotations": [], "categories": [{"id": 3, "name": "cat"}]}))
    truth = coco_ground_truth(metrics.CocoMetric(ann_file=str(path)))
    assert truth.get_img_ids() == [7] and truth.get_cat_ids(cat_names=["cat"]) == [3]
    assert coco_ground_truth(metrics.CocoMetric()) is None


def test_mmdets_cascade_passes_through_the_methods_that_are_replaced() -> None:
    heads = pytest.importorskip("mmdet.models.roi_heads")
    for name in ("_bbox_forward", "_mask_forward", "_refine_roi"):
        theirs, ours = (inspect.signature(getattr(each, name)) for each in (heads.CascadeRoIHead, CascadeStages))
        assert list(ours.parameters)[:4] == list(theirs.parameters)[:4]
    for caller in ("bbox_loss", "mask_loss", "predict_bbox"):
        used = inspect.getsource(getattr(heads.CascadeRoIHead, caller))
        assert any(f"self.{name}(" in used for name in ("_bbox_forward", "_mask_forward", "_refine_roi")), caller


def test_workers_that_are_kept_end_when_asked() -> None:
    before = multiprocessing.active_children()
    loader = DataLoader(list(range(4)), num_workers=2, persistent_workers=True)
    for _ in range(2):  # the second time with new ones
        assert [int(batch) for batch in loader] == [0, 1, 2, 3]
        assert len(multiprocessing.active_children()) == len(before) + 2
        end_workers(loader)
        assert multiprocessing.active_children() == before
    for without in (DataLoader([1]), None, {"num_workers": 2}):
        end_workers(without)
