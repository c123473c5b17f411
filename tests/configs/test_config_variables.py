"""Variables of configs and options inside them reach what is computed from them, or are refused with the key to set."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from adpe.engine.config import read_config
from adpe.engine.options.paths import put
from adpe.errors import UserError

BASE = """
size = 8
rate = 0.1
norm = dict(type="SyncBN", eps=1e-3)
pipeline = [dict(type="Load"), dict(type="Crop", size=(size, size))]
model = dict(norm=norm, width=2 * size, out=(1, 2))
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=pipeline))
val_dataloader = dict(batch_size=1)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=rate), clip_grad=None)
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.py").write_text(BASE)
    return tmp_path / "base.py"


def child(base: Path, text: str, name: str = "child.py") -> Path:
    path = base.parent / name
    path.write_text(f"_base_ = './{base.name}'\n{text}\n")
    return path


def test_options_inside_a_variable_reach_what_is_made_of_it(base: Path) -> None:
    options = {"norm.type": "BN", "pipeline.1.size": (3, 3), "val_dataloader.batch_size": 2, "model.out.1": 5}
    for path in (base, child(base, "model = dict(depth=3)")):
        cfg = read_config(path, options)
        assert cfg.model.norm.to_dict() == {"type": "BN", "eps": 1e-3}
        assert cfg.train_dataloader.dataset.pipeline[1]["size"] == (3, 3)
        assert cfg.test_dataloader.batch_size == 2
        assert (cfg.model.out, cfg.model.width) == ((1, 5), 16)


def test_options_below_what_is_left_out(base: Path) -> None:
    cfg = read_config(base, {"compile.backend": "eager", "optim_wrapper.clip_grad.max_norm": 1.0})
    assert (cfg.compile.backend, cfg.optim_wrapper.clip_grad.max_norm) == ("eager", 1.0)
    cfg = read_config(base, {"model.norm.type": "LN", "model.norm._delete_": True})
    assert cfg.model.norm.to_dict() == {"type": "LN"}


def test_variables_of_a_child_take_effect(base: Path) -> None:
    path = child(base, "size = 5\nrate = 1e-5\nnorm = dict(type='BN')\nmodel = dict(depth=3)")
    cfg = read_config(path)
    assert (cfg.model.width, cfg.model.depth, cfg.optim_wrapper.optimizer.lr) == (10, 3, 1e-5)
    assert cfg.train_dataloader.dataset.pipeline[1]["size"] == (5, 5)
    assert cfg.model.norm.to_dict() == cfg.norm.to_dict() == {"type": "BN", "eps": 1e-3}
    # Of the two the option counts; of several children the last.
    assert read_config(path, {"size": 7}).model.width == 14
    grandchild = child(path, "size = 6", "grandchild.py")
    assert (read_config(grandchild).model.width, read_config(grandchild).optim_wrapper.optimizer.lr) == (12, 1e-5)


def test_a_dict_that_a_child_changes_keeps_following_the_childs_variables(base: Path) -> None:
    """Validation and test must not stay on the base's data while training moves to the child's."""
    base.write_text(BASE.replace("batch_size=1)", "batch_size=1, dataset=dict(type='A', size=size, twice=2 * size))"))
    text = "size = 5\ntrain_dataloader = dict(batch_size=2)\nval_dataloader = dict(dataset=dict(type='B'))"
    for options, size in (({}, 5), ({"size": 7}, 7)):
        cfg = read_config(child(base, text), options)
        assert cfg.train_dataloader.dataset.pipeline[1]["size"] == (size, size)
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            assert loader.to_dict() == {"batch_size": 1, "dataset": {"type": "B", "size": size, "twice": 2 * size}}


def test_what_a_child_computes_from_a_variable_follows_its_own_child(base: Path) -> None:
    middle = child(base, "epochs = 100\nsize = epochs // 20", "middle.py")
    assert read_config(middle).model.width == 10
    last = child(middle, "epochs = 40", "last.py")
    assert read_config(last).model.width == 4
    assert read_config(last, {"epochs": 60}).model.width == 6


def test_a_value_computed_from_the_bases_own(base: Path) -> None:
    assert read_config(child(base, "rate = 2 * _base_.rate")).optim_wrapper.optimizer.lr == 0.2
    with pytest.raises(UserError, match="rate"):
        read_config(child(base, "double = 2 * _base_.rate\nrate = double"))


def test_several_kinds_of_assignment(base: Path) -> None:
    text = "a = b = 3\nc: int = 4\nd = 1\nd *= 5\nif a > 2:\n    e = 7\nmodel = dict(x=[a, b, c, d, e])"
    (base.parent / "plain.py").write_text(text)
    options = {"a": 30, "c": 40, "d": 50, "e": 70}
    assert read_config(base.parent / "plain.py", options).model.x == [30, 3, 40, 50, 70]


def test_base_by_an_expression_and_by_the_folder_of_the_file(base: Path) -> None:
    for bases in (f'["{base.parent}/" + "base.py"]', '"{{ fileDirname }}/base.py"'):
        path = base.parent / "own.py"
        path.write_text(f"_base_ = {bases}\nsize = 3\nwhere = '{{{{ fileDirname }}}}'\nmodel = dict(where=where)\n")
        cfg = read_config(path)
        assert (cfg.model.width, cfg.model.where) == (6, str(base.parent))
    path.write_text("name = 'base.py'\n_base_ = name\n")
    with pytest.raises(UserError, match="line 2"):
        read_config(path)
    path.write_text("_base_ = 3\n")
    with pytest.raises(UserError, match="got 3"):
        read_config(path)


def test_text_that_is_special_elsewhere_arrives_as_it_is(base: Path) -> None:
    (base.parent / "text.py").write_text("root = 'a'\nmodel = dict(root=root + '/x')\n")
    for root in ("my data (1)", "a,b", 'it\'s "quoted"', "Größe", "{{ fileDirname }}", "{{_base_.x}}", "$HOME"):
        assert read_config(base.parent / "text.py", {"root": root}).model.root == f"{root}/x"


@pytest.mark.parametrize(("option", "value", "key"), [
    ("norm.type", "BN", r"model\.norm\.type"),
    ("pipeline.1.size", (2, 2), r"train_dataloader\.dataset\.pipeline\.1\.size"),
])  # fmt: skip
def test_a_dumped_config_refuses_what_would_change_nothing(base: Path, option: str, value: object, key: str) -> None:
    dumped = base.parent / "dumped.py"
    read_config(base).dump(dumped)
    assert read_config(dumped).to_dict() == read_config(base).to_dict()
    read_config(base, {option: value})
    with pytest.raises(UserError, match=key):
        read_config(dumped, {option: value})
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        read_config(child(dumped, "lr = 3"))


def test_an_option_that_another_one_overrules_is_refused(base: Path) -> None:
    (base.parent / "two.py").write_text("blr = 1.0\nlr = 2 * blr\nmodel = dict(lr=lr)\n")
    assert read_config(base.parent / "two.py", {"blr": 2.0}).model.lr == 4.0
    with pytest.raises(UserError, match=r"blr=2\.0"):
        read_config(base.parent / "two.py", {"blr": 2.0, "lr": 3.0})


def test_misspelt_variables_of_a_child_are_refused(base: Path) -> None:
    with pytest.raises(UserError, match=r"sizes .*size"):
        read_config(child(base, "sizes = 3"))
    with pytest.raises(UserError, match=r"train_dataloader\.batch_size"):
        read_config(child(base, "batch_size = 3"))
    assert read_config(child(base, "my_own = 3")).my_own == 3


def test_frameworks_configs_are_read_as_mmengine_reads_them(tmp_path: Path) -> None:
    """Their children assign names anew that the bases are not meant to follow."""
    (tmp_path / "mmseg").mkdir()
    (tmp_path / "mmseg" / "__init__.py").touch()
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "base.py").write_text(BASE)
    theirs = configs / "theirs.py"
    theirs.write_text("_base_ = './base.py'\nsize = 4\nmodel = dict(head=size)\n")
    assert read_config(theirs).to_dict() == Config.fromfile(theirs).to_dict()
    assert read_config(theirs).model.width == 16
    # One's own config over it reaches what it does not itself use.
    own = tmp_path.parent / "own_config.py"
    own.write_text(
        f"_base_ = '{configs}/base.py'\nsize = 4\nnorm = dict(type='LN')\nmodel = dict(head=dict(norm=norm))\n"
    )
    cfg = read_config(own)
    assert (cfg.model.width, cfg.model.norm.type, cfg.model.head.norm.type) == (8, "SyncBN", "LN")


def test_put_keeps_the_kinds_of_containers_and_names_wrong_keys() -> None:
    node = {"a": [1, (2, {"b": 3})], "c": None}
    assert put(node, ["a", "1", "1", "b"], 4) == {"a": [1, (2, {"b": 4})], "c": None}
    assert node["a"][1] == (2, {"b": 3})
    assert put(node, ["c", "d"], 1)["c"] == {"d": 1}
    for keys, word in ((["a", "2"], "0..1"), (["a", "x"], "0..1"), (["a", "0", "z"], "z"), (["a"], "list")):
        with pytest.raises(KeyError, match=word):
            put(node, keys, "x,y")
