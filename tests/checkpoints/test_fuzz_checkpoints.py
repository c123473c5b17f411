"""Damaged and hostile checkpoints end in the documented error, in bounded time and memory, and execute nothing."""

from __future__ import annotations

import io
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import SCALARS, edits, fuzz, mutated, seen, watched  # noqa: F401  a fixture
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

import adpe
from adpe.checkpoints.reading import read_file, read_model_config
from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.errors import UserError


class Call:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_the_watch_sees_what_it_forbids(tmp_path):
    pickle.loads(pickle.dumps(Call(str(tmp_path / "made"))))
    assert (tmp_path / "made").is_dir()
    os.symlink("a", tmp_path / "link")
    assert len(seen) == 1 and seen.pop().startswith("os.symlink")


PICKLE_WORDS = (
    b"cos\nmkdir\n", b"cbuiltins\neval\n", b"\x80\x04", b"R.", b"r\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"(dp0\n",
    b"\x8b\xff\xff\xff\x7f", b"\x85R", b"b.", b"u.", b"q\x00", b"h\x00", b"\x94", b"0.",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, bytes]:
    """One checkpoint in every format, as bytes by its suffix."""
    encoder = adpe.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    state = encoder.state_dict()

    def saved(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    meta = {"iter": 3, "cfg": "model = dict(type='AdPEPretraining', model='adpe_vit_tiny_patch8')\n"}
    training = {"state_dict": state, "meta": meta, "optimizer": {"state": {}}, "message_hub": {"log_scalars": {}}}
    return {
        ".safetensors": safetensors_bytes(state),
        ".pth": saved(training),
        ".pt": saved(state, _use_new_zipfile_serialization=False),
        ".pkl": pickle.dumps({"model": arrays, "__author__": "a"}, protocol=2),
        ".pickle": pickle.dumps({"model": arrays, "code": Call("executed")}, protocol=4),
    }


def read_every_way(path: Path) -> int:
    """Read as a checkpoint in all ways; how many succeed. Errors other than `UserError` go through."""
    encoder = adpe.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    read = 0
    for reader in (
        read_file, read_model_config, adpe.read_checkpoint, read_training_checkpoint,
        lambda path: adpe.load_checkpoint(encoder, path, verbose=False),
    ):  # fmt: skip
        try:
            reader(path)
            read += 1
        except UserError as error:
            assert str(path) in str(error)
    return read


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".pkl", ".pickle"])
def test_checkpoints(suffix, checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(checkpoints[suffix])
    assert read_every_way(path) == {".pth": 5, ".pickle": 0}.get(suffix, 4)

    @fuzz
    @given(edits(PICKLE_WORDS))
    def run(changes):
        path.write_bytes(mutated(checkpoints[suffix], changes))
        read_every_way(path)

    run()


NAMES = st.sampled_from((
    "state_dict", "model", "teacher", "student", "meta", "cfg", "optimizer", "message_hub", "log_scalars", "history",
    "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "pos_embed",
    "blocks.0.attn.rpe_k.adv_token", "blocks.1.attn.rpe_k.adv_shift", "blocks.0.attn.rpe_k.lookup_table_weight",
    "rel_pos_bias.relative_position_bias_table", "blocks.x", "blocks", "backbone.layers.0.ln1.weight", "cls_token",
    "adv_token", "decoder_pos_embed", "head.weight", "fc_norm.weight", "patch_embed.proj.weight", "mask_token", 3, None,
    "module.encoder.blocks.0.norm1.weight", "blocks.0.attn.relative_position_bias_table", "norm.weight", "neck.ln1.a",
    "backbone.net.blocks.0.attn.rel_pos_h", "blocks.0.ls1.gamma", "config",
))  # fmt: skip
SHAPES = st.lists(st.integers(0, 9), max_size=4)
TENSORS = st.builds(
    lambda shape, kind: torch.zeros(shape, dtype=kind), SHAPES,
    st.sampled_from((torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64)),
)  # fmt: skip
STATES = st.recursive(
    st.one_of(TENSORS, SCALARS),
    lambda inner: st.one_of(st.dictionaries(NAMES, inner, max_size=8), st.lists(inner, max_size=3)),
    max_leaves=20,
)


def test_checkpoints_that_hold_anything_under_known_names(tmp_path):
    path = tmp_path / "a.pth"

    @fuzz
    @given(STATES)
    def run(state):
        torch.save(state, path)
        read_every_way(path)

    run()


def test_weights_of_any_shape_load_or_are_refused(checkpoints, tmp_path):
    path = tmp_path / "a.pth"
    (tmp_path / "whole.pth").write_bytes(checkpoints[".pth"])
    whole = read_training_checkpoint(tmp_path / "whole.pth")["state_dict"]

    @fuzz
    @given(st.dictionaries(st.one_of(st.sampled_from(sorted(whole)), NAMES), st.one_of(TENSORS, SCALARS), max_size=6))
    @example({"patch_embed.proj.weight": torch.zeros(0, 0, 0, 0)})
    def run(changes):
        torch.save({**whole, **changes}, path)
        read_every_way(path)

    run()


def test_bombs_are_refused_before_they_take_memory(checkpoints, tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(io.BytesIO(checkpoints[".pth"])) as whole, zipfile.ZipFile(path, "w") as bomb:
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry) + bytes(2**20), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**19
    for reader in (read_file, read_training_checkpoint):
        with pytest.raises(UserError, match=r"bomb\.pth unpacks to \d{8} bytes, more than it has"):
            reader(path)
    # An index into a table of 16 GB.
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"memo\.pkl is not a readable checkpoint"):
        read_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
