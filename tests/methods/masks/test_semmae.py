"""SemMAE: its recipe, which patches of which parts are hidden when, what it refuses, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from frozen_encoders import tokenizer_file
from mmengine.registry import MODELS
from PIL import Image
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small, trains_in_bfloat16

import adpe
from adpe.data.dataset import AdPEImageDataset
from adpe.errors import UserError
from adpe.methods.base import Progress
from adpe.methods.masks.semmae import part_mask, part_share

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_systems" / "semmae"
TINY = {
    "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "decoder_embed_dim": 48, "decoder_depth": 1,
    "decoder_num_heads": 3,
}  # fmt: skip


def semmae(folder: Path, method: str = "semmae", count: int | None = 5, **options):
    parts = str(tokenizer_file(folder, count))
    torch.manual_seed(0)
    return adpe.create_method(method, "adpe_vit_tiny_patch4", parts=parts, **{**TINY, **options})


def quadrants(count: int) -> torch.Tensor:
    """``(count, 64)``: four parts of 16 patches, the quarters of an 8 x 8 grid."""
    rows = torch.arange(8) // 4
    return (2 * rows[:, None] + rows).flatten().expand(count, -1)


def test_recipe_of_vit_base():
    """The command in the README of ucasligang/SemMAE: 8 x 8 GPUs of 128 images, and MAE's pretraining."""
    name = "configs/pretrain/masks/semmae_vitb_800e.py"
    cfg = config(name)
    assert (cfg.effective_batch, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (8192, 128, 800)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * 8192 / 256)
    assert (cfg.optim_wrapper.optimizer.weight_decay, cfg.optim_wrapper.get("clip_grad")) == (0.05, None)
    assert tuple(cfg.optim_wrapper.optimizer.betas) == (0.9, 0.95)
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.T_max, cosine.eta_min) == (40, 40, 760, 0.0)
    crops = cfg.train_dataloader.dataset.crops
    assert (crops["size"], crops["num_crops"], tuple(crops["scale"]), crops["hflip"]) == (224, 1, (0.2, 1.0), 0.5)
    model = meta_model(name).model
    assert (model.mask_ratio, model.norm_pix_loss, model.mask_tokens) == (0.75, True, "decoder")
    assert (model.encoder.embed_dim, len(model.encoder.blocks), model.encoder.num_heads) == (768, 12, 12)
    assert (model.decoder.pred.in_features, len(model.decoder.blocks), model.decoder.num_heads) == (512, 8, 16)
    decayed = {id(p) for p in model.parameter_groups(1.0, 0.05)[0]["params"]}
    assert {id(model.encoder.cls_token), id(model.mask_token)} <= decayed


def test_small_recipe(tmp_path: Path):
    parts = str(tokenizer_file(tmp_path))
    cfg = config("configs/pretrain/masks/cifar10_semmae.py", {"parts": parts})
    cfg.model.update(depth=1, decoder_depth=1)
    model = MODELS.build(cfg.model).model
    assert (model.labeller.vocabulary, model.encoder.embed_dim, model.mask_ratio) == (5, 192, 0.75)
    mae = config("configs/pretrain/cifar10_mae.py")
    assert cfg.train_dataloader.dataset.pop("maps") is None
    for key in ("train_dataloader", "param_scheduler", "train_cfg", "effective_batch"):
        assert cfg[key] == mae[key], key
    assert cfg.optim_wrapper.optimizer == mae.optim_wrapper.optimizer


def test_two_steps_through_the_launcher(tmp_path: Path):
    """The labeller is in the checkpoint, rests, and is not in the exported encoder."""
    parts = tokenizer_file(tmp_path)
    runner = train_small("masks/cifar10_semmae", tmp_path, {"parts": str(parts), "model.decoder_depth": 1})
    assert runner.iter == 2
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    with safe_open(tmp_path / "frozen.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(state[f"model.labeller.{name}"], file.get_tensor(name)), name
    assert state["model.part_counts"].sum() == 8 * 64
    with safe_open(tmp_path / "work" / "encoder.safetensors", framework="pt") as file:
        assert all(key.startswith("encoder.") for key in [*file.keys()])
        assert json.loads(next(iter(file.metadata().values())))["method"] == "SemMAE"


def test_the_share_goes_from_parts_to_whole_parts():
    shares = [part_share(epoch, 800) for epoch in (0, 399, 799, 900)]
    assert shares == pytest.approx([0.9999984375, 0.75, 0.0, 0.0])
    assert part_share(399, 400) == 0.0  # the run's own length, not 800


def test_whole_parts_are_hidden_at_the_end_alone():
    torch.manual_seed(0)
    parts, noise, part_noise = quadrants(200), torch.rand(200, 64), torch.rand(200, 4)
    start, end = (part_mask(parts, noise, part_noise, 0.75, share).hidden for share in (1.0, 0.0))
    counts = [torch.stack([(mask & (parts == k)).sum(1) for k in range(4)], 1) for mask in (start, end)]
    assert counts[0].unique().tolist() == [12]
    assert counts[1].unique().tolist() == [0, 16]
    assert torch.equal(counts[1].argmin(1), part_noise.argmax(1))


def test_every_image_shows_as_many_patches():
    """With patches of no part, an empty part, and one part alone."""
    torch.manual_seed(0)
    parts = torch.randint(-1, 3, (20, 100))
    parts[1], parts[2] = -1, 0
    for share in (1.0, 0.5, 0.0):
        mask = part_mask(parts, torch.rand(20, 100), torch.rand(20, 5), 0.6, share)
        assert mask.hidden.sum(1).tolist() == [60] * 20
        assert torch.equal(mask.hidden_indices.sort(1).values, mask.hidden.nonzero()[:, 1].view(20, 60))


def test_wrong_turns_differ_as_the_page_says():
    """Case `regular` of the recorded masks: 18 patches without the +1 of the epoch."""
    arrays = np.load(GOLDENS / "masks.npz")
    given = [torch.from_numpy(arrays[f"input.regular.{kind}"]) for kind in ("parts", "noise", "part_noise")]
    epochs = json.loads((GOLDENS / "meta.json").read_text())["cases"]["masks"]["cases"]["regular"]["epochs"]
    recorded = torch.from_numpy(arrays["output.regular.hidden"]).bool()
    early = [part_mask(*given, 0.75, part_share(epoch - 1, 800)).hidden for epoch in epochs]
    wrong = torch.stack(early) ^ recorded
    assert int(wrong.sum()) == 18


@pytest.mark.parametrize("count", [5, None])
def test_a_resumed_step_is_equal_and_bfloat16_trains(count: int | None, tmp_path: Path):
    assert resumes_exactly(semmae(tmp_path, count=count), torch.randn(2, 3, 32, 32))
    assert trains_in_bfloat16(semmae(tmp_path, count=count), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("method", ["semmae_plus", "sem_adpe"])
def test_parts_go_with_mask_tokens_before_the_encoder(method: str, tmp_path: Path):
    """The same masks as SemMAE's at the same random numbers; an adversary moves."""
    images = torch.randn(2, 3, 32, 32)
    model = semmae(tmp_path, method)
    masks = []
    for one in (model, semmae(tmp_path)):
        torch.manual_seed(5)
        masks.append(one.random_mask(images).hidden)
    assert torch.equal(*masks)
    logged = steps(model, images, 2)
    assert np.isfinite([entry["loss"] for entry in logged]).all()
    assert model.mask_tokens == "encoder"
    assert model.title != semmae(tmp_path).title and "parts" in model.title


def test_the_epoch_reaches_the_mask(tmp_path: Path):
    model, images = semmae(tmp_path), torch.randn(1, 1, 3, 32, 32)
    model.losses([images], Progress(0, 1, 7, 10))
    assert model.share == pytest.approx(1 - 0.8**2)


def write_maps(folder: Path, images: list[Path], value: int = 0) -> str:
    """Maps of four quarters."""
    folder.mkdir()
    field = np.kron(np.array([[0, 1], [2, 3]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8)) + value
    for path in images:
        Image.fromarray(field.astype(np.uint8)).save(folder / f"{path.stem}.png")
    return str(folder)


def test_given_maps_follow_their_crops(tmp_path: Path):
    """Images whose colour is their part: the crops of both agree, flips and all; 255 is no part."""
    (tmp_path / "images").mkdir()
    quarters = np.kron(np.array([[0, 1], [2, 3]]), np.ones((16, 16)))
    Image.fromarray((60 * quarters).astype(np.uint8)).save(tmp_path / "images" / "one.png")
    maps = write_maps(tmp_path / "maps", [tmp_path / "one.png"])
    dataset = AdPEImageDataset(
        tmp_path / "images", crops={"size": 16, "num_crops": 40, "scale": (0.2, 1.0), "normalize": "device"},
        maps={"folder": maps, "num_parts": 4},
    )  # fmt: skip
    crops, parts = dataset[0]["inputs"]
    assert parts.shape == (40, 1, 16, 16)
    agree = ((crops[:, :1].float() / 60).round() == parts).float().mean()
    assert agree > 0.95  # bicubic filters round the borders of the quarters
    assert len(parts.unique()) == 4
    field = np.full((32, 32), 255, dtype=np.uint8)
    Image.fromarray(field).save(Path(maps) / "one.png")
    assert dataset[0]["inputs"][1].unique().tolist() == [-1]


def test_training_on_given_maps(tmp_path: Path):
    """At the last epoch of one, whole quarters are hidden; no frozen model is in the record."""
    names = [tmp_path / f"{i}.png" for i in range(8)]
    options = {"num_parts": 4, "model.decoder_depth": 1, "maps": write_maps(tmp_path / "maps", names)}
    runner = train_small("masks/cifar10_semmae", tmp_path, options)
    counts = runner.model.model.part_counts
    assert counts.sum() == 8 * 64 and (counts > 0).all()
    assert "made_with" not in json.loads((tmp_path / "work" / "record.jsonl").read_text().splitlines()[-1])
    model = runner.model.model
    views = [
        torch.randn(2, 1, 3, 32, 32),
        quadrants(2).view(2, 1, 1, 8, 8).repeat_interleave(4, 3).repeat_interleave(4, 4),
    ]
    assert torch.equal(model.given_parts(views), quadrants(2))
    assert set(model.figures(views, (0, 0, 0), (1, 1, 1))) == {"reconstructions", "parts"}
    with pytest.raises(UserError, match=r"dataset\.maps"):
        model.losses(views[:1])
    with pytest.raises(UserError, match="16, 16"):
        model.losses([views[0], views[1][..., ::2, ::2]])


@pytest.mark.parametrize("fault", ["missing", "value", "size", "twice"])
def test_maps_that_do_not_fit_are_refused(fault: str, tmp_path: Path):
    images = [tmp_path / "images" / name for name in ("a/one.png", "b/one.png" if fault == "twice" else "b/two.png")]
    for path in images:
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 40 if fault == "size" else 32)).save(path)
    maps = write_maps(tmp_path / "maps", images[: 1 if fault == "missing" else 2], 1 if fault == "value" else 0)
    key = {"missing": "two.png", "value": "part 4", "size": r"\(32, 32\).*\(40, 32\)", "twice": "one"}[fault]
    with pytest.raises(UserError, match=key):
        AdPEImageDataset(tmp_path / "images", crops={"size": 16}, maps={"folder": maps, "num_parts": 4})[0]


def test_parts_of_other_patches_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"patches of 8 pixels.* 4\."):
        adpe.create_method("semmae", "adpe_vit_tiny_patch4", parts=str(tokenizer_file(tmp_path, patch_size=8)), **TINY)


def test_training_without_parts_is_refused():
    with pytest.raises(UserError, match=r"model\.parts"):
        adpe.create_method("semmae", "adpe_vit_tiny_patch4", **TINY).losses([torch.rand(1, 1, 3, 32, 32)])


def test_one_part_for_everything_is_a_collapse(tmp_path: Path):
    model = semmae(tmp_path)
    assert model.collapse(Progress()) is None
    model.part_counts.copy_(torch.tensor([900, 800, 700, 600, 500]))
    assert model.collapse(Progress()) is None
    model.part_counts.copy_(torch.tensor([99_000, 300, 300, 300, 100]))
    assert "99.0%" in model.collapse(Progress())
    model.part_counts.copy_(torch.tensor([500, 500, 1, 1, 1]))
    assert "2 of 5" in model.collapse(Progress())


def test_it_learns_and_draws(tmp_path: Path):
    torch.manual_seed(0)
    rows = torch.linspace(-2, 2, 32).view(1, 1, 32, 1)
    images = (rows * torch.randn(8, 3, 1, 1)).expand(-1, -1, -1, 32).contiguous()
    logged = steps(semmae(tmp_path), images, 40, lr=3e-3)
    assert logged[-1]["loss"] < 0.7 * logged[0]["loss"]
    model = semmae(tmp_path)
    assert set(model.figures([images[:2].unsqueeze(1)], (0, 0, 0), (1, 1, 1))) == {"reconstructions", "parts"}
