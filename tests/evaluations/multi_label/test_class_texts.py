"""Text sides: CLIP's out of a file against the recorded values, random, table; files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("mmseg")
from built_configs import ROOT
from mmseg.utils.tokenizer import SimpleTokenizer

from adpe.errors import UserError
from adpe.evaluations.multi_label.class_texts import sentence, text_side

GOLDENS = ROOT / "tests" / "goldens_systems" / "dualcoop"
VOCABULARY = 49408


def recorded(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDENS / f"{name}.npz").items()}
    return arrays, json.loads((GOLDENS / "meta.json").read_text())["cases"][name]


def clip_state(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of CLIP with the recorded weights, the embeddings by the recorded tokens."""
    state = {
        key.removeprefix("param."): value.clone()
        for key, value in data.items()
        if key.startswith("param.") and "prompt_learner" not in key
    }
    table = torch.full((VOCABULARY, 16), 7.0)
    contexts = data["input.tokens"].shape[1] - 1 - data["input.token_suffix_neg"].shape[1]
    for row, tokens in enumerate(data["input.tokens"][:4].long()):
        table[tokens[0]] = data["input.token_prefix_neg"][row, 0]
        table[tokens[1 + contexts :]] = data["input.token_suffix_neg"][row]
    return {**state, "token_embedding.weight": table, "visual.proj": torch.zeros(2, 2)}


@pytest.mark.parametrize("name", ["prompts_generic", "prompts_class_specific"])
@pytest.mark.parametrize("form", [".safetensors", ".pt"])
def test_clip_from_a_file_gives_the_recorded_features(name: str, form: str, tmp_path: Path) -> None:
    """Tokens of names, places of end tokens and weights; what follows the end token changes nothing."""
    data, said = recorded(name)
    path = tmp_path / f"clip{form}"
    state = clip_state(data)
    if form == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    options = {"contexts": said["contexts"], "class_specific": said["class_specific"], "heads": said["text_heads"]}
    texts = text_side({"type": "clip", "checkpoint": str(path), **options}).build(said["classes"], 99, 0)
    assert texts.ends.tolist() == data["input.end_positions"].tolist()
    with torch.no_grad():
        texts.prompts.ctx_pos.copy_(data["param.prompt_learner.ctx_pos"])
        texts.prompts.ctx_neg.copy_(data["param.prompt_learner.ctx_neg"])
    wanted = data["output.text_features"]
    assert float((texts().detach() - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert {name for name, p in texts.named_parameters() if p.requires_grad} == {"prompts.ctx_neg", "prompts.ctx_pos"}


def test_tokens_of_names_are_the_recorded_ones() -> None:
    data, said = recorded("prompts_generic")
    tokenizer = SimpleTokenizer()
    for row, end, name in zip(data["input.tokens"], data["input.end_positions"], said["classes"], strict=False):
        assert row[1 + said["contexts"] : int(end)].tolist() == tokenizer.encode(sentence(name))


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.pop("text_projection"), "text_projection"),
    (lambda s: s.update(positional_embedding=torch.zeros(9, 24)), r"positional_embedding is \(9, 24\)"),
    (lambda s: s.update({"ln_final.weight": torch.zeros(8)}), r"ln_final\.weight"),
    (lambda s: s.update({"token_embedding.weight": torch.zeros(100, 16)}), "100 rows"),
    (lambda s: s.pop("transformer.resblocks.1.ln_2.bias"), r"resblocks\.1\.ln_2\.bias"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_named(change: Any, words: str, tmp_path: Path) -> None:
    state = clip_state(recorded("prompts_generic")[0])
    change(state)
    save_file(state, tmp_path / "clip.safetensors")
    side = text_side({"type": "clip", "checkpoint": str(tmp_path / "clip.safetensors"), "contexts": 4, "heads": 2})
    with pytest.raises(UserError, match=rf"clip\.safetensors.*{words}"):
        side.build(["cat"], 16, 0)


def test_prompts_that_are_too_long_and_heads_that_are_not_said(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(clip_state(recorded("prompts_generic")[0]), path)
    with pytest.raises(UserError, match=r"contexts = 6: the prompt of 'traffic light' has 11 tokens.*takes 9"):
        text_side({"type": "clip", "checkpoint": str(path), "contexts": 6, "heads": 2}).build(
            ["cat", "traffic light"], 1, 0
        )
    with pytest.raises(UserError, match=r"text\.heads"):
        text_side({"type": "clip", "checkpoint": str(path), "contexts": 4}).build(["cat"], 1, 0)
    with pytest.raises(UserError, match=r"nothing\.pt"):
        text_side({"type": "clip", "checkpoint": str(tmp_path / "nothing.pt")}).build(["cat"], 1, 0)


def test_random_texts_follow_seed_and_name() -> None:
    side = text_side({"type": "random", "contexts": 3})
    torch.manual_seed(1)
    first = side.build(["cat", "a_cow"], 99, 5)
    torch.manual_seed(1)
    again, other = side.build(["cat", "a_cow"], 99, 5), side.build(["cat", "a_cow"], 99, 6)
    assert torch.equal(first(), again()) and not torch.equal(first(), other())
    assert first().shape == (4, 64) and first.ends.tolist() == [8, 10, 8, 10]
    assert not torch.equal(first()[0], first()[1])
    assert [tuple(p.shape) for p in first.parameters() if p.requires_grad] == [(3, 64)] * 2


def test_a_table_starts_from_a_file_by_name(tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    vectors = {"cat": torch.arange(3.0), "dog": torch.ones(3), "unused": torch.ones(5)}
    save_file(vectors, path)
    side = text_side({"type": "table", "checkpoint": str(path)})
    found = side.build(["dog", "cat"], 16, 0)
    assert found.joint == 3 and found().tolist() == [[1, 1, 1], [0, 1, 2]] * 2
    assert side.told().startswith("table ") and text_side({"type": "table"}).told() == "table"
    with pytest.raises(UserError, match=r"words\.safetensors: no vector of 1 of 2 classes \(hen\)"):
        side.build(["dog", "hen"], 16, 0)
    with pytest.raises(UserError, match=r"vector of unused is \(5,\), expected 3"):
        side.build(["dog", "unused"], 16, 0)
    with pytest.raises(UserError, match=r"expected 8 finite numbers \(evaluation\.text\.joint"):
        text_side({"type": "table", "checkpoint": str(path), "joint": 8}).build(["dog"], 16, 0)
    start = text_side({"type": "table"}).build(["dog", "cat"], 16, 0)()
    assert start.shape == (4, 16) and torch.equal(start[:2], start[2:]) and not torch.equal(start[0], start[1])


@pytest.mark.parametrize(("options", "words"), [
    ({}, "type"), ({"type": "word2vec"}, "word2vec"), ({"type": "clip"}, "checkpoint"),
    ({"type": "table", "contexts": 4}, "contexts"), ({"type": "random", "contexts": 0}, "contexts"),
    ({"type": "random", "heads": 3}, "heads"),
])  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        text_side(options)
