"""Every config loads, builds its model at full size, has no dead keys, and says what it is and how it is run."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from built_configs import ADE20K, CASCADE, COCO, CONFIGS, EPOCH_LENGTH, ROOT, config, meta_model, schedule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from adpe.config_names import CONFIGS as FOLDER
from adpe.config_names import MOVED, NAMES, text
from adpe.engine.config import _MOVED, read_config
from adpe.errors import UserError
from adpe.evaluations.base import build_evaluation

# Keys of the launcher and its hooks beside mmengine's Runner.
LAUNCHER = {
    "custom_imports",
    "evaluation",
    "effective_batch",
    "record",
    "record_file",
    "sync_bn",
    "precision",
    "tta_model",
    "tta_pipeline",
}

# Nothing is trained by the Runner.
FROZEN = (
    "configs/dense/ade20k_knn_vitb.py", "configs/cifar10/attentive.py", "configs/cifar10/ep.py",
    "configs/cifar10/knn.py", "configs/cifar10/knn_layers.py",
    "configs/cifar10/linear.py", "configs/cifar10/positions.py", "configs/demo/knn_segmentation.py",
    "configs/imagenet/attentive_vitb.py", "configs/imagenet/ep_vitb.py", "configs/imagenet/knn_vitb.py",
    "configs/cifar10/backdoor.py", "configs/cifar10/backdoor_finetuned.py",
    "configs/cifar10/logistic.py", "configs/imagenet/lowshot_vitb.py",
    "configs/imagenet/positions_vitb.py", "configs/multi_label/coco_vitb.py", "configs/multi_label/scenes.py",
    "configs/multi_label/scenes_linear.py", "configs/cifar10/shortcut.py",
    "configs/cifar10/pacmac.py", "configs/officehome_pacmac_vitb.py",
    "configs/multi_label/bigearthnet_vits8.py", "configs/multi_label/scenes14.py",
)  # fmt: skip

# Built around the codes of a trained tokenizer; tests/methods/parti/test_image_sequences.py builds it.
OF_A_FILE = ("configs/sequence/demo_captions.py",)


def sources(path: Path) -> Iterator[ast.Module]:
    """Syntax trees of a config and its bases."""
    tree = ast.parse(text(path))
    yield tree
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                yield from sources((path.parent / base).resolve())


def test_the_configs_are_there() -> None:
    """So that the tests below cannot pass on nothing."""
    assert len(CONFIGS) >= 50
    assert {
        "configs/ade20k_upernet_vitb.py", "configs/ade20k_upernet_vitl.py", "configs/coco_maskrcnn_vitb.py",
        "configs/coco_maskrcnn_vitl.py", "configs/coco_cascade_maskrcnn_vitb.py", "configs/coco_maskrcnn_vitb_adpe.py",
        "configs/coco_cascade_maskrcnn_vitl.py", "configs/coco_cascade_maskrcnn_vitb_adpe.py",
    } <= set(CONFIGS)  # fmt: skip
    assert (len(COCO), len(CASCADE)) == (6, 3)


@pytest.mark.parametrize("name", [name for name in CONFIGS if (ROOT / name).is_file()])
def test_docstring(name: str) -> None:
    """What it reproduces, the cost, and a command that runs this very config with a script that is there."""
    text = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert text is not None
    for field in ("Reproduces: ", "Cost: ", "Command: "):
        assert field in text, field
    command = re.search(r"^Command: (.*)$", text, re.MULTILINE)
    assert command is not None
    script = re.search(r"tools/\w+\.(py|sh)", command[1])
    assert script is not None
    assert (ROOT / script[0]).is_file()
    assert name in command[1].split()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_its_recipe_with_options(name: str) -> None:
    recipe, options = NAMES[name]
    assert not (FOLDER / name).exists()
    cfg = read_config(f"configs/{name}")
    assert cfg.to_dict() == read_config(FOLDER / recipe, options).to_dict()
    assert cfg.filename == f"configs/{name}"


@pytest.mark.parametrize("name", ["imagenet_finetune_vitb", "ade20k_linear_vitb", "scenes_multilabel_linear",
                                  "coco_multilabel_vitb", "pretrain/sdssl_moco_vitb_300e",
                                  "_base_/pretrain_cifar10", "_base_/imagenet_finetune"])  # fmt: skip
def test_an_earlier_name_is_the_config_of_today(name: str) -> None:
    assert read_config(f"configs/{name}.py").to_dict() == read_config(FOLDER / MOVED[f"{name}.py"]).to_dict()


def test_earlier_names_are_of_no_file_and_lead_to_one() -> None:
    assert [name for name in MOVED if (FOLDER / name).exists() or name in NAMES] == []
    assert [name for name in MOVED.values() if not (FOLDER / name).is_file()] == []
    assert len(set(MOVED.values())) == len(MOVED)


@pytest.mark.parametrize("module", _MOVED)
def test_a_config_that_a_run_of_before_wrote_imports_what_it_names(tmp_path: Path, module: str) -> None:
    (tmp_path / "saved.py").write_text(f"custom_imports = dict(imports=[{module!r}], allow_failed_imports=False)\n")
    assert read_config(tmp_path / "saved.py").custom_imports.imports == [_MOVED[module]]


def test_a_name_stands_for_a_file(tmp_path: Path) -> None:
    """Without its suffix, as the base of a config, and below the options of a command line."""
    name = "pretrain/adpe_rpe_embedding_vitl_400e.py"
    expected = read_config(FOLDER / name).to_dict()
    assert read_config(name.removesuffix(".py")).to_dict() == expected
    (tmp_path / "mine.py").write_text(f"_base_ = {str(FOLDER / name)!r}\ndata_root = 'elsewhere'\n")
    mine = read_config(tmp_path / "mine.py")
    assert mine.train_dataloader.dataset.source == "elsewhere" and mine.model.to_dict() == expected["model"]
    assert read_config(FOLDER / name, {"epochs": 7}).train_cfg.max_epochs == 7


def test_an_option_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match="no size"):
        read_config("pretrain/cifar10_adpe", {"size": "large"})
    with pytest.raises(UserError, match="position=relative"):
        read_config("pretrain/mfm_vitb_300e", {"position": "relative"})
    with pytest.raises(UserError, match=r"pretrain/mae_vitb_800e\.py"):
        read_config("configs/pretrain/mae_vitb_801e.py")


def test_every_name_is_in_the_table() -> None:
    """Of configs/README.md, by its patterns of names."""
    table = (FOLDER / "README.md").read_text()
    for name, (recipe, options) in NAMES.items():
        stem = Path(name).stem
        if not name.startswith("_base_"):
            assert f"`{Path(recipe).stem}`" in table, name
            pattern = re.sub(r"vit[blh]_\d+e", "*", stem)
            assert f"`{pattern}`" in table, name
        for option in options:
            assert f"`{option}=" in table, name


@pytest.mark.parametrize("name", CONFIGS)
def test_no_dead_keys(name: str) -> None:
    """Every top-level key is the Runner's, the launcher's, or a variable that the config or a base computes with."""
    trees = list(sources(ROOT / name))
    used = {n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    used |= {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    known = {*inspect.signature(Runner.__init__).parameters, *LAUNCHER, *used}
    if config(name).get("evaluation"):  # which may read further data
        known |= {key for key in config(name) if key.endswith("_dataloader")}
    assert config(name).env_cfg.cudnn_benchmark is False, "a resumed run would choose its kernels anew, by timing"
    assert set(config(name)) - known == set(), "assigned and never used: --cfg-options of these would do nothing"


def test_the_evaluations_are_told_apart() -> None:
    assert [name for name in CONFIGS if config(name).get("evaluation")] == sorted(FROZEN)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_features_at_full_size(name: str) -> None:
    """Nothing trained, an evaluation that is built, and no part of a training."""
    assert not any(parameter.requires_grad for parameter in meta_model(name).parameters())
    assert build_evaluation(config(name).evaluation).head
    assert not {"optim_wrapper", "param_scheduler", "train_cfg"} & set(config(name))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in (*FROZEN, *OF_A_FILE)])
def test_builds_at_full_size(name: str) -> None:
    """The model; every parameter in its optimizer once; nothing of pretraining left in a transferred encoder."""
    cfg, model = config(name), meta_model(name)
    cfg.optim_wrapper.optimizer.pop("fused", None)  # not for parameters without memory
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(optimized) == len(set(optimized))
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trained and set(optimized) == trained
    if cfg.default_scope != "mmengine":
        assert not [n for n, _ in model.backbone.named_parameters() if re.search("mask_token|adversary|decoder", n)]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in FROZEN])
def test_schedule_ends_where_training_ends(name: str) -> None:
    """The learning rate rises to the full one, is above 0 at half of the training, and at its minimum at the end."""
    cfg = config(name)
    length = cfg.train_cfg.get("max_iters") or cfg.train_cfg.max_epochs * EPOCH_LENGTH
    rates = schedule(json.dumps(cfg.param_scheduler), length)
    # Published cosines that are counted from the first step have fallen a little when the warm-up ends.
    formula = any(one.type == "AdPEFormulaScheduler" for one in cfg.param_scheduler)
    assert max(rates) == pytest.approx(1.0, abs=0.015 if formula else 1e-6)
    assert rates.index(max(rates)) < length / 5  # HPM of 200 epochs warms up for 40
    assert rates[length // 2] > 0.4
    assert rates[-1] == min(rates[length // 2 :])
    # Where a recipe says that the rate does not fall to 0, as I-JEPA's.
    ends = [one.get("last", 0.0) for one in cfg.param_scheduler if one.get("param_name", "lr") == "lr"]
    assert rates[-1] < 0.011 + max(ends)


@pytest.mark.parametrize("name", [*ADE20K, *COCO])
def test_command_line_variables(name: str) -> None:
    """`--cfg-options pretrained=... position=... data_root=... lr=... num_classes=...` reach what is made of them."""
    options = {"pretrained": "encoder.pth", "position": "relative", "data_root": "my/data", "lr": 7e-5}
    options["num_classes"] = 5
    cfg = config(name, options)
    assert config(name).model.backbone.init_cfg is None
    assert config(name).record.start == "random"
    new = {"allow_missing": ["blocks.*.attn.rel_pos_[hw]"]} if name in COCO else {}
    assert cfg.model.backbone.init_cfg == {"type": "Pretrained", "checkpoint": "encoder.pth", **new}
    assert (cfg.record.start, cfg.model.backbone.position) == ("pretrained", "relative")
    assert cfg.optim_wrapper.optimizer.lr == 7e-5
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == "my/data"
    text = json.dumps(cfg.model.to_dict())
    assert re.findall(r'"num_classes": (\d+)', text) == ["5"] * (4 if name in CASCADE else 2)
