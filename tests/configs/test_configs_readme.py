"""The snippets of configs/README.md are configs that read, build and give the maps that their heads expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
import mmdet
import mmseg
from built_configs import ROOT, build
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from test_backbone_swap import DETECTION, SEGMENTATION

from adpe.config_names import known_configs
from adpe.engine.config import read_config

TEXT = (ROOT / "configs" / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
# Strides of the pyramid: of UperNet's four levels, and the five of Mask R-CNN.
STRIDES = {"mmseg": [4, 8, 16, 32], "mmdet": [4, 8, 16, 32, 64]}


def read(index: int, folder: Path) -> Config:
    """A snippet as a file of its own, with the config that it is based on at its place."""
    (base,) = re.findall(r'^_base_ = "(.*)"$', SNIPPETS[index], re.MULTILINE)
    package, _, rest = base.partition("/")
    module = {"mmseg": mmseg, "mmdet": mmdet}.get(package)
    path = Path(module.__file__).parent / ".mim" / "configs" / rest if module else ROOT / "configs" / rest
    assert path.is_file(), base
    file = folder / "snippet.py"
    file.write_text(SNIPPETS[index].replace(f'"{base}"', repr(str(path))))
    return read_config(file)


def test_all_snippets_are_found() -> None:
    assert [re.search(r'_base_ = "(?:\./)?(\w+)', snippet)[1] for snippet in SNIPPETS] == [
        "mmseg", "mmdet", "ade20k_upernet_vitb", "ade20k_upernet_vitb", "coco_maskrcnn_vitb",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet(index: int, tmp_path: Path) -> None:
    """At full size: every parameter has a rate, shallow ones less, and the maps have their strides and channels."""
    cfg = read(index, tmp_path)
    # Without memory, but for relative positions, which ask for the device's autocast.
    device = "cpu" if "position" in cfg.model.backbone else "meta"
    model = build(cfg, device)
    cfg.optim_wrapper.optimizer.pop("fused", None)  # not for parameters without memory
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    assert {id(p) for group in groups for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    rates = sorted({group["lr"] for group in groups})
    assert len(rates) > 5 and rates[-1] == cfg.optim_wrapper.optimizer.lr
    side = 128
    with torch.device(device), torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, side, side))
        assert [tuple(y.shape[2:]) for y in maps] == [(side // s, side // s) for s in STRIDES[cfg.default_scope]]
        if cfg.default_scope == "mmseg":
            channels = {*model.decode_head.in_channels, model.auxiliary_head.in_channels}
            assert channels == {y.shape[1] for y in maps} == {768}
        else:
            assert {y.shape[1] for y in maps} == {model.rpn_head.in_channels} == {256}


def test_the_table_lists_what_is_tested() -> None:
    rows = re.findall(r"^\| ([A-Z][^|]*) \| ([A-Z][^|]*) \|$", TEXT, re.MULTILINE)
    ((segmentation, detection),) = rows
    assert sorted(segmentation.split(", ")) == sorted(SEGMENTATION)
    assert sorted(detection.split(", ")) == sorted(DETECTION)


def test_every_config_and_tool_that_it_names_is_there() -> None:
    for name in re.findall(r"`((?:pretrain/|demo/|_base_/)?[\w*]+_\*?)`", TEXT):
        stem = name.rpartition("/")[2].rstrip("*")
        assert [one for one in ["_base_", *known_configs()] if Path(one).name.startswith(stem)], name
    for path in re.findall(r"(?:tools|tests|configs)/[\w/]+\.(?:py|sh)", TEXT):
        assert (ROOT / path).is_file(), path
