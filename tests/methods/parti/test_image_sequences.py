"""Image sequence models: caches, sampling, guidance, conditions, files, and that words tell what is drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config
from mmengine.registry import MODELS
from small_pretraining import resumes_exactly, steps, train_small

import adpe
from adpe.checkpoints.loading import load_encoder
from adpe.data.scenes import write_scenes
from adpe.errors import UserError
from adpe.methods.parti.image_sequences import ImageSequenceModel, load_sequence_model
from adpe.methods.parti.public_decoders import ClassToCodes
from adpe.methods.parti.sequences import TextToCodes, guided, keep_top_k, keep_top_p, sample
from adpe.methods.parti.vitvq import ViTVQ
from adpe.methods.targets.tokenizers import load_tokenizer, save_autoencoder
from tools import sample as tool

WORDS = ("a", "red", "blue", "left", "of")
TINY = {"img_size": 16, "dim": 24, "num_heads": 2, "encoder_blocks": 1, "decoder_blocks": 2, "text_tokens": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight codes of patches of 4 pixels, of a decoder that is not trained."""
    torch.manual_seed(0)
    model = ViTVQ(16, 4, 32, 1, 2, 16, None, 8, 4, codebook="moving")
    model.used.fill_(1)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    save_autoencoder(path, model)
    return str(path)


def sequence(tokenizer: str, condition: str = "text", **options) -> ImageSequenceModel:
    torch.manual_seed(0)
    words = {"class": ("cat", "dog"), "none": ()}.get(condition, WORDS)
    given = {"tokenizer": tokenizer, "condition": condition, "words": words, **TINY, **options}
    return adpe.create_method("sequence", "sequence", **given)


def views(condition: str = "text", count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 3, 16, 16, generator=generator)
    if condition == "none":
        return [images]
    words = torch.randint(1, 3, (count, 1), generator=generator)
    return [images, words if condition == "class" else torch.cat([words, 0 * words], dim=1)]


def test_small_recipe(tokenizer: str):
    cfg = config("configs/sequence/demo_captions.py")
    dataset = cfg.train_dataloader.dataset
    assert (dataset.captions["words"], dataset.captions["length"]) == (cfg.model.words, cfg.model.text_tokens)
    assert (dataset.source, dataset.split) == ("work_dirs/scenes/images", "training")
    assert dataset.captions["file"] == "work_dirs/scenes/instances_training.json"
    assert dataset.crops["hflip"] == 0.0
    cfg.model.tokenizer = tokenizer
    model = MODELS.build(cfg.model).model
    network = model.network.transformer
    assert (len(network.encoder.layers), len(network.decoder.layers), network.d_model) == (2, 4, 96)
    assert (model.network.image_pos.shape[0], model.drop) == (64, 0.1)
    decayed = {id(p) for p in model.parameter_groups(1.0, 1e-4)[0]["params"]}
    assert not decayed & {id(p) for p in model.tokenizer.parameters()}


def test_cached_logits_are_those_of_teacher_forcing():
    """Token by token, on both models; the shift of the class model sees the token before."""
    torch.manual_seed(0)
    text, lengths, codes = torch.randint(1, 11, (3, 6)), torch.tensor([6, 4, 1]), torch.randint(16, (3, 16))
    model = TextToCodes(16, 2, 2, 2, 32, 6, 11, 16, 16)
    shifted = ClassToCodes(16, 2, 2, 4, 2, 16, 16)
    for parameter in (*model.parameters(), *shifted.parameters()):
        parameter.data += 0.2 * torch.randn_like(parameter)
    condition = torch.randint(4, (3, 2))
    for forced, step in (
        (model(text, lengths, codes), model.stepper(text, lengths)),
        (shifted(condition, codes), shifted.stepper(condition)),
    ):
        cached = torch.stack([step(codes[:, :place]) for place in range(16)], dim=1)
        torch.testing.assert_close(cached, forced, rtol=1e-4, atol=1e-4)
        assert forced.std() > 0.1
    wrong = shifted(condition, codes, parity=True)
    assert (wrong - shifted(condition, codes)).abs().max() > 0.1


def test_codes_do_not_see_themselves_and_padding_is_hidden():
    torch.manual_seed(0)
    model = TextToCodes(16, 2, 1, 2, 32, 6, 11, 16, 16)
    text, lengths, codes = torch.randint(1, 11, (1, 6)), torch.tensor([3]), torch.randint(16, (1, 16))
    before = model(text, lengths, codes)
    other = codes.clone()
    other[0, 7] = (other[0, 7] + 1) % 16
    changed = (model(text, lengths, other) - before).abs().amax(dim=-1)[0]
    assert (changed > 1e-6).tolist() == [place > 7 for place in range(16)]
    longer = text.clone()
    longer[0, 3:] = 1
    torch.testing.assert_close(model(longer, lengths, codes), before)


def test_sampling_follows_its_filters():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    assert keep_top_k(logits, 2).exp().tolist() == pytest.approx([0, 0.4, 0.3, 0])
    # 0.4 and 0.3 stand before 0.2, which goes at p = 0.7 and stays at 0.71.
    assert keep_top_p(logits.exp(), 0.7).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert keep_top_p(logits.exp(), 0.71).tolist() == pytest.approx([0, 4 / 9, 3 / 9, 2 / 9])
    assert torch.equal(guided(logits, logits + 1, 3.0), logits + 3)

    def step(codes: torch.Tensor) -> torch.Tensor:
        return logits.expand(len(codes), -1)

    drawn = sample(step, 2000, 3, temperature=0.5, top_k=3, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    squares = torch.tensor([0, 0.16, 0.09, 0.04]) / 0.29
    torch.testing.assert_close(shares, squares, rtol=0, atol=0.03)
    assert torch.equal(drawn, sample(step, 2000, 3, 0.5, 3, None, torch.Generator().manual_seed(0)))
    for wrong in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            sample(step, 1, 1, **wrong)


@pytest.mark.parametrize("condition", ["text", "class", "none"])
def test_a_resumed_step_is_equal_and_the_tokenizer_rests(condition: str, tokenizer: str):
    model = sequence(tokenizer, condition)
    before = {name: tensor.clone() for name, tensor in model.tokenizer.state_dict().items()}
    assert resumes_exactly(model, views(condition))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tokenizer.state_dict().items())
    assert model.made_with()["tokenizer"]["kind"] == "vitvq"
    names = {"samples"}
    assert set(model.figures(views(condition), (0, 0, 0), (1, 1, 1))) == names


def test_dropped_texts_are_the_null_text(tokenizer: str):
    model = sequence(tokenizer)
    text, lengths, codes = model.inputs(views())
    null = torch.nn.functional.cross_entropy(model.network.of_null(text, codes).flatten(0, 1), codes.flatten())
    assert model.network.loss(text, lengths, codes, 0.5, torch.zeros(6)).item() == pytest.approx(null.item(), rel=1e-5)
    kept = model.network.loss(text, lengths, codes, 0.5, torch.ones(6))
    assert kept.item() == pytest.approx(model.network.loss(text, lengths, codes).item(), rel=1e-6)


@pytest.mark.parametrize("condition", ["text", "class"])
def test_words_tell_what_is_drawn(condition: str, tokenizer: str):
    """Two kinds of codes under two words: each is likelier under its own, and drawn for it."""
    model = sequence(tokenizer, condition)
    text = torch.tensor([[2], [3]] if condition == "text" else [[1], [2]])
    text = torch.nn.functional.pad(text, (0, model.text_tokens - 1))
    codes = torch.stack([torch.tensor([1, 2] * 8), torch.tensor([5, 6] * 8)])
    lengths = torch.ones(2, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameter_groups(5e-3, 1e-4), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(80):
        loss = model.network.loss(text.repeat(8, 1), lengths.repeat(8), codes.repeat(8, 1), model.drop)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model.network.loss(text, lengths, codes).item()
    # The first code alone depends on the word.
    assert right < 0.1 and model.network.loss(text.flip(0), lengths, codes).item() > right + 0.2
    found, pictures = model.draw(text, guidance=3.0, top_k=2, seed=1)
    assert torch.equal(found, codes)
    assert torch.equal(pictures, model.tokenizer.pictures(codes, (4, 4)))
    free, _ = model.draw(torch.zeros(64, model.text_tokens, dtype=torch.long), seed=2)
    assert 0.2 < (free[:, 0] == 1).float().mean() < 0.8


def test_two_steps_through_the_launcher_and_pictures(tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_scenes(tmp_path / "scenes", 8, 1, 0, 32)
    own = {"data_root": str(tmp_path / "scenes"), "tokenizer": tokenizer, "model.img_size": 16,
           "train_dataloader.dataset.crops.size": 16, "model.dim": 24, "model.decoder_blocks": 1,
           "model.embed_dim": None, "model.depth": None}  # fmt: skip
    runner = train_small("../sequence/demo_captions", tmp_path, own)
    assert runner.iter == 2 and not (tmp_path / "work" / "encoder.safetensors").exists()
    record = json.loads((tmp_path / "work" / "record.jsonl").read_text().splitlines()[-1])
    assert record["made_with"]["tokenizer"]["file_sha256"] == load_tokenizer(tokenizer).origin["file_sha256"]
    path = tmp_path / "work" / "sequence.safetensors"
    loaded, model = load_sequence_model(path), runner.model.model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded.encode(["a 2 above a 0"]), torch.tensor([[1, 7, 4, 1, 5, 0]]))
    out = tmp_path / "grid.png"
    arguments = [str(path), "--text", "a 2 above a 0", "a 1", "--count", "2", "--top-k", "4", "--out", str(out)]
    assert tool.main(arguments) == 0 and out.is_file()
    first = out.read_bytes()
    assert tool.main(arguments) == 0 and out.read_bytes() == first
    for wrong in (["--text", "a cat"], ["--count", "0"], ["--temperature", "0"]):
        assert tool.main([str(path), *wrong]) == 2
    assert tool.main([tokenizer]) == 2
    assert "cat" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"sequence\.safetensors"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"condition": "image", "words": WORDS}, "image"),
        ({"words": ()}, "0 words"),
        ({"drop": 1.0}, "drop=1"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"img_size": 18}, "img_size=18"),
        ({"words": ("Red",)}, "Red"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str, tokenizer: str):
    with pytest.raises((ValueError, UserError), match=key):
        sequence(tokenizer, **options)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ([torch.rand(2, 1, 3, 32, 32), torch.ones(2, 2, dtype=torch.long)], "crops.size=16"),
        ([torch.rand(2, 1, 3, 16, 16)], "captions="),
        ([torch.rand(2, 1, 3, 16, 16), torch.full((2, 2), 9)], "number 9"),
        ([torch.rand(2, 1, 3, 16, 16), torch.ones(2, 7, dtype=torch.long)], "7 words"),
    ],
)
def test_views_that_cannot_be_are_refused(given: list[torch.Tensor], key: str, tokenizer: str):
    with pytest.raises(UserError, match=key):
        sequence(tokenizer).losses(given)


def test_a_tokenizer_that_cannot_be_decoded_is_refused(tmp_path: Path):
    from frozen_encoders import tokenizer_file

    with pytest.raises(UserError, match="vitvq"):
        sequence(str(tokenizer_file(tmp_path, 8)))
    with pytest.raises(UserError, match=r"model\.tokenizer"):
        sequence(None)


def test_the_loss_starts_at_that_of_equal_codes(tokenizer: str):
    logged = steps(sequence(tokenizer), views(), 30, lr=3e-3)
    assert logged[0]["loss"] == pytest.approx(math.log(8), rel=0.15)  # of equal chances
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
