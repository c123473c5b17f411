"""Runs that would train or measure nothing are stopped, each guard can be switched off by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from test_adversary import KINDS
from test_visualize import OPTIONS, write_images
from torch import nn

from adpe.engine.hooks.label_guard import _labels
from adpe.engine.launch import test_main as evaluate
from adpe.engine.launch import train_main
from adpe.errors import UserError

GUARDS = [
    "finite_loss", "learning_rate_guard", "gradient_guard", "adversary_guard", "collapse_guard", "evaluation_guard",
    "label_guard", "batch_guard",
]  # fmt: skip


@MODELS.register_module()
class TinyModelWithUnusedLayer(tiny_training.TinyModel):
    def __init__(self, freeze: bool = False) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2).requires_grad_(not freeze)


@METRICS.register_module()
class TinyMetricWithoutNumber(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"mIoU": float("nan"), "aAcc": float("nan")}


@TRANSFORMS.register_module()
class TinyLabels:
    """A label map of the labels in the data info."""

    def __call__(self, info: dict[str, Any]) -> dict[str, Any]:
        sample = BaseDataElement(metainfo={"img_path": str(info["sample_idx"])})
        sample.gt_sem_seg = PixelData(data=torch.tensor(info["labels"]).view(1, 1, -1))
        return {"inputs": torch.ones(4), "data_samples": sample}


@DATASETS.register_module()
class TinyLabelledDataset(BaseDataset):
    METAINFO = {"classes": ("wall", "sky", "tree", "cat")}

    def __init__(self, labels: list[list[int]]) -> None:
        self.labels = labels
        super().__init__(pipeline=[{"type": "TinyLabels"}], serialize_data=False)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"labels": labels} for labels in self.labels]


@MODELS.register_module()
class TinyLabelledModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        return {"loss": self.linear(torch.stack(inputs)).mean()}


def train(folder: Path, capsys: pytest.CaptureFixture[str], extra: str = "", *options: str, **values: Any) -> tuple:
    """Exit status, what was told on stderr, and the log."""
    path = tiny_training.config(folder, **values, extra=extra)
    status = train_main([str(path), "--work-dir", str(folder / path.stem), *options])
    log = "".join(file.read_text() for file in (folder / path.stem).glob("*/*.log"))
    return status, capsys.readouterr().err, log


def off(name: str) -> list[str]:
    return ["--cfg-options", f"default_hooks.{name}=None"]


def test_all_are_on_by_default():
    hooks = Config.fromfile(tiny_training.RUNTIME, import_custom_modules=False).default_hooks
    assert {name for name in hooks if name.endswith("_guard") or name == "finite_loss"} == set(GUARDS)


def test_finite_loss_can_be_switched_off(tmp_path, capsys):
    extra = "train_dataloader['dataset']['bad'] = 15"
    assert train(tmp_path, capsys, extra)[0] == 2
    # What comes out of such a run is caught by another.
    status, error, _ = train(tmp_path, capsys, extra, *off("finite_loss"))
    assert status == 2 and "no metric on val_dataloader is a number (error)" in error


# Learning rate --------------------------------------------------------------------------------------------------------

EARLY_END = "param_scheduler = [dict(type='PolyLR', by_epoch=False, begin=0, end=6, eta_min=0.0)]"


def test_a_schedule_that_ends_early_is_stopped(tmp_path, capsys):
    status, error, _ = train(tmp_path, capsys, EARLY_END)
    assert status == 2
    # PolyLR over 6 iterations has no learning rate left in the sixth.
    assert error.startswith("error: the learning rate is zero at iteration 6 of 12: the rest would change nothing.")
    assert "param_scheduler" in error and "default_hooks.learning_rate_guard=None" in error
    assert train(tmp_path, capsys, EARLY_END, *off("learning_rate_guard"))[0] == 0


def test_a_learning_rate_of_zero_from_the_start_is_stopped(tmp_path, capsys):
    status, error, _ = train(tmp_path, capsys, "optim_wrapper['optimizer']['lr'] = 0.0")
    assert status == 2 and "the learning rate is zero at iteration 2 of 12" in error


def test_a_schedule_that_ends_with_the_run_is_not(tmp_path, capsys):
    assert train(tmp_path, capsys, EARLY_END, iterations=6)[0] == 0
    # Two batches to an optimizer step: the schedule is as long.
    assert train(tmp_path, capsys, EARLY_END, iterations=6, effective_batch=8)[0] == 0


# Gradients ------------------------------------------------------------------------------------------------------------

UNUSED = "model = dict(type='TinyModelWithUnusedLayer')"


def test_parameters_without_a_gradient_are_listed(tmp_path, capsys):
    status, error, _ = train(tmp_path, capsys, UNUSED)
    assert status == 2
    assert error.startswith(
        "error: 2 parameters have no gradient in the first optimizer step and would not be trained: unused.weight, "
        "unused.bias. "
    )
    assert "find_unused_parameters = True" in error and "default_hooks.gradient_guard=None" in error
    assert train(tmp_path, capsys, UNUSED, *off("gradient_guard"))[0] == 0


def test_parameters_that_rest_are_exempt_and_no_others(tmp_path):
    """Prototypes of DINO are frozen for the first epoch; a forgotten parameter beside them is still told of."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from small_pretraining import train_small

    options = {"model.hidden": 32, "model.bottleneck": 16, "model.prototypes": 32}
    assert train_small("self_distillation/cifar10_dino", tmp_path / "rests", options).iter == 2

    @HOOKS.register_module(force=True)
    class TinyLosesABias(Hook):
        def before_train(self, runner: Any) -> None:
            bias = runner.model.model.student.head.mlp[0].bias
            runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: setattr(bias, "grad", None))

        priority = "VERY_HIGH"

    (tmp_path / "loses").mkdir()
    with pytest.raises(UserError, match=r"1 parameters .* model\.student\.head\.mlp\.0\.bias\. "):
        train_small("self_distillation/cifar10_dino", tmp_path / "loses", {**options, "custom_hooks": [
            {"type": "AdPEEpochHook"}, {"type": "TinyLosesABias"}
        ]})  # fmt: skip


def test_unused_parameters_that_the_config_allows_are_told_of(tmp_path, capsys):
    status, _, log = train(tmp_path, capsys, UNUSED + "\nfind_unused_parameters = True")
    assert status == 0
    assert log.count("2 parameters have no gradient in the first optimizer step") == 1


def test_frozen_parameters_need_no_gradient(tmp_path, capsys):
    assert train(tmp_path, capsys, "model = dict(type='TinyModelWithUnusedLayer', freeze=True)")[0] == 0


def test_parameters_in_no_group_are_listed(tmp_path, capsys):
    from mmengine.optim import DefaultOptimWrapperConstructor
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    @OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
    class TinyForgetfulConstructor(DefaultOptimWrapperConstructor):
        def __call__(self, model: nn.Module) -> Any:
            wrapper = super().__call__(model)
            wrapper.optimizer.param_groups[0]["params"].pop()
            return wrapper

    status, error, _ = train(tmp_path, capsys, "optim_wrapper['constructor'] = 'TinyForgetfulConstructor'")
    assert status == 2
    assert "1 parameters are in no group of the optimizer: linear.bias. Look at optim_wrapper.constructor" in error


# The adversary --------------------------------------------------------------------------------------------------------


def pretraining(folder: Path, kind: str, extra: str = "", constructor: bool = True) -> str:
    position, adversary = KINDS[kind]
    images = write_images(folder / "images", 8)
    named = "constructor='AdversarialOptimWrapperConstructor'," if constructor else ""
    return f"""
model = dict(type="AdPEPretraining", model="adpe_vit_tiny_patch4", position={position!r}, adversary={adversary!r},
    **{OPTIONS!r})
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"), dataset=dict(type="AdPEImageDataset", source={str(images)!r},
    crops=dict(size=16, num_crops=1, normalize="device")))
optim_wrapper = dict(type="OptimWrapper", {named} optimizer=dict(type="AdamW", lr=1e-2))
val_dataloader = val_evaluator = val_cfg = None
train_cfg = dict(by_epoch=True, max_epochs=2)
param_scheduler = None
custom_hooks = []
{extra}
"""


@pytest.mark.parametrize("kind", ["coordinate", "embedding", "relative_embedding"])
def test_an_adversary_that_moves_passes(kind, tmp_path, capsys):
    extra = pretraining(tmp_path, kind, "default_hooks['adversary_guard'] = dict(steps=2)")
    status, error, _ = train(tmp_path, capsys, extra, by_epoch=True)
    assert (status, error) == (0, "")


@pytest.mark.parametrize("steps", [2, 100])  # found on the way, or at the end
def test_a_frozen_adversary_is_stopped(steps, tmp_path, capsys):
    extra = pretraining(
        tmp_path,
        "coordinate",
        f"optim_wrapper['paramwise_cfg'] = dict(adversary_lr=0.0)\n"
        f"default_hooks['adversary_guard'] = dict(steps={steps})",
    )
    status, error, _ = train(tmp_path, capsys, extra, by_epoch=True)
    assert status == 2
    assert (
        f"the adversary is frozen: model.adversary.shift did not move in {min(steps, 4)} optimizer steps (its learning "
        "rate is 0). Set optim_wrapper.paramwise_cfg.adversary_lr above zero" in error
    )
    extra = pretraining(tmp_path, "coordinate", "optim_wrapper['paramwise_cfg'] = dict(adversary_lr=0.0)")
    status, error, _ = train(tmp_path, capsys, extra, *off("adversary_guard"), by_epoch=True)
    assert status == 0, error


def test_a_descending_adversary_is_stopped(tmp_path, capsys):
    extra = pretraining(tmp_path, "coordinate", constructor=False)
    status, error, _ = train(tmp_path, capsys, extra, by_epoch=True)
    assert status == 2
    assert "the adversary would not ascend: model.adversary.shift in no group with maximize=True, or frozen." in error
    assert "AdPEPretrainingConstructor" in error and "default_hooks.adversary_guard=None" in error


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_an_empty_evaluation_set_is_found_before_training(tmp_path, capsys):
    extra = "val_dataloader['dataset']['length'] = 0"
    path = tiny_training.config(tmp_path, extra=extra)
    assert train_main([str(path), "--work-dir", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: val_dataloader.dataset is empty: there is nothing to evaluate on.")
    assert "data_root" in error and not (tmp_path / "w" / "seen.txt.0").exists()


def test_evaluation_guard_in_testing(tmp_path, capsys):
    path = tiny_training.config(tmp_path, iterations=2, interval=2)
    assert train_main([str(path), "--work-dir", str(tmp_path / "run")]) == 0
    arguments = [str(path), str(tmp_path / "run" / "iter_2.pth"), "--work-dir", str(tmp_path / "test")]
    assert evaluate([*arguments, "--cfg-options", "test_dataloader.dataset.length=0"]) == 2
    assert "test_dataloader.dataset is empty" in capsys.readouterr().err
    without_number = ["--cfg-options", "test_evaluator.type=TinyMetricWithoutNumber"]
    assert evaluate([*arguments, *without_number]) == 2
    assert (
        "no metric on test_dataloader is a number (mIoU, aAcc): it has no label that counts" in capsys.readouterr().err
    )
    assert evaluate([*arguments, *without_number, "default_hooks.evaluation_guard=None"]) == 0


# Labels ---------------------------------------------------------------------------------------------------------------


def labelled(labels: list[list[int]]) -> str:
    return (
        f"model = dict(type='TinyLabelledModel')\n"
        f"train_dataloader['dataset'] = dict(type='TinyLabelledDataset', labels={labels!r})\n"
        "val_dataloader = val_evaluator = val_cfg = None\ncustom_hooks = []"
    )


def test_classes_that_are_never_seen_are_named_at_the_end(tmp_path, capsys):
    extra = labelled([[0, 255], [0, 2], [255, 255], [2, 0]])
    status, _, log = train(tmp_path, capsys, extra, iterations=4, batch_size=2)
    assert status == 0
    assert log.count("2 of 4 classes had no label in iterations 1 to 4, and are not learned: sky, cat.") == 1
    _, _, log = train(tmp_path, capsys, extra, *off("label_guard"), iterations=4, batch_size=2)
    assert "had no label" not in log
    status, _, log = train(tmp_path, capsys, labelled([[0, 1], [2, 3]]), iterations=4, batch_size=2)
    assert status == 0 and "had no label" not in log


def test_ignored_labels_alone_are_stopped_after_the_first_pass(tmp_path, capsys):
    extra = labelled([[255, 255]] * 4)
    status, error, _ = train(tmp_path, capsys, extra, iterations=8, batch_size=2)
    assert status == 2
    assert "the first 2 iterations had no label of the 4 classes (wall, sky, tree, cat): all are ignored" in error
    assert "reduce_zero_label" in error and "default_hooks.label_guard=None" in error
    assert train(tmp_path, capsys, extra, *off("label_guard"), iterations=8, batch_size=2)[0] == 0


def test_labels_of_detection_and_classification():
    detection, classification = BaseDataElement(), BaseDataElement()
    detection.gt_instances = InstanceData(labels=torch.tensor([3, 1]), bboxes=torch.zeros(2, 4))
    classification.gt_label = BaseDataElement(label=torch.tensor([2]))
    found = [labels for _, labels in _labels({"data_samples": [detection, BaseDataElement(), classification]})]
    assert [labels.tolist() for labels in found] == [[3, 1], [2]]
    assert list(_labels({"data_samples": {"img_path": ["a"]}})) == list(_labels([1])) == []
