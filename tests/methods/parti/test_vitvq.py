"""The ViT-VQ tokenizer: its recipe, codebooks, files and who may read them, guards, and that it learns."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytest.importorskip("mmengine")
from built_configs import config, meta_model
from safetensors import safe_open
from small_pretraining import resumes_exactly, steps, train_small
from torch import nn

import adpe
from adpe.checkpoints.loading import load_encoder
from adpe.errors import UserError
from adpe.methods.base import Progress
from adpe.methods.parti.quantizers import MovingQuantizer, Quantizer
from adpe.methods.parti.vitvq import ViTVQ, logit_laplace
from adpe.methods.targets.tokenizers import load_tokenizer, save_autoencoder

TINY = {"img_size": 16, "patch_size": 4, "dim": 32, "depth": 1, "num_heads": 2, "head_dim": 16, "code_dim": 4}
SMALL_RUN = {"model.dim": 32, "model.codes": 8, "model.embed_dim": None}


def vitvq(**options) -> ViTVQ:
    torch.manual_seed(0)
    return adpe.create_method("vitvq", "vitvq", **{**TINY, "codes": 16, **options})


def pictures(count: int = 16) -> torch.Tensor:
    """Blocks of four flat colours."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 2, 2, generator=generator).repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_recipe_of_the_small_tokenizer():
    """ViT-VQGAN's sizes, codebook and optimiser; what is ours is said in the config."""
    name = "configs/tokenizer/vitvq_small_imagenet256.py"
    cfg = config(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, tuple(optimizer.betas)) == (1e-4, 1e-4, (0.9, 0.99))
    assert (cfg.effective_batch, cfg.train_cfg.max_epochs, cfg.param_scheduler[0].end) == (256, 100, 10)
    model = meta_model(name).model
    assert (model.patch_size, model.img_size, model.vocabulary) == (8, 256, 8192)
    assert model.weights == {"l1": 0.0, "l2": 1.0, "laplace": 0.1, "codebook": 1.0}
    assert isinstance(model.quantizer, Quantizer) and tuple(model.quantizer.embedding.weight.shape) == (8192, 32)
    assert (model.quantizer.beta, model.quantizer.normalise) == (0.25, True)
    assert model.quantizer.straight_through == "normalised"
    for half in (model.down_blocks, model.up_blocks):
        assert (len(half.blocks), half.blocks[0].attn.num_heads) == (8, 8)
        assert tuple(half.blocks[0].attn.qkv.weight.shape) == (3 * 512, 512) and half.blocks[0].attn.qkv.bias is None
        assert (half.blocks[0].fc1.out_features, half.blocks[0].activation) == (2048, "gelu")
        assert [type(layer) for layer in half.head] == [nn.Linear, nn.Tanh, nn.Linear]
    assert model.to_pixels.out_channels == 6
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    (group,) = model.parameter_groups(1.0, 1e-4)
    assert len(group["params"]) == len(list(model.parameters())) and group["weight_decay"] == 1e-4


@pytest.mark.parametrize("name", ["cifar10_vitvq", "demo_vitvq"])
def test_small_recipes(name: str):
    cfg = config(f"configs/tokenizer/{name}.py")
    model = meta_model(f"configs/tokenizer/{name}.py").model
    assert (model.vocabulary, model.img_size, model.patch_size) == (256, 32, 4)
    assert isinstance(model.quantizer, MovingQuantizer) and tuple(model.quantizer.codebook.shape) == (256, 8)
    assert (model.weights["l1"], model.weights["l2"], model.weights["laplace"]) == (0.1, 1.0, 0.0)
    assert cfg.train_dataloader.dataset.crops["size"] == 32


def test_the_likelihood_integrates_to_one_and_has_its_picture_at_its_mean():
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    for mu, log_b in ((0.0, -1.0), (1.3, -2.0), (-2.0, 0.5)):
        y = (1 - 0.2) * x + 0.1
        density = (-logit_laplace(x, torch.tensor(mu), torch.tensor(log_b))).exp()
        # Of y, whose share below 0.1 and above 0.9 no pixel has.
        inside = torch.trapezoid(density, y).item()
        tails = [math.log(p / (1 - p)) - mu for p in (0.1, 0.9)]
        low, high = (
            0.5 * math.exp(t / math.exp(log_b)) if t < 0 else 1 - 0.5 * math.exp(-t / math.exp(log_b)) for t in tails
        )
        assert inside == pytest.approx(high - low, abs=1e-5)
    model = vitvq(laplace=0.1)
    output = torch.tensor([0.0, math.log(0.8 / 0.2), -math.log(9)]).view(1, 3, 1, 1).repeat(1, 2, 1, 1)
    assert model.picture(output).flatten().tolist() == pytest.approx([0.5, (0.8 - 0.1) / 0.8, 0.0], abs=1e-6)
    assert set(model.losses([pictures().unsqueeze(1)])) == {"loss_l2", "loss_laplace", "loss_codebook", "error_l2"}


def test_straight_through_passes_the_normalisation_or_not():
    """The gradient along a latent is 0 through its normalisation; the public code copies it all."""
    torch.manual_seed(0)
    z = torch.randn(2, 5, 4)
    for kind in ("normalised", "latent"):
        quantizer = Quantizer(8, 4, beta=0.0, straight_through=kind)
        leaf = z.clone().requires_grad_()
        (quantizer(leaf).codes * torch.randn(2, 5, 4)).sum().backward()
        along = (leaf.grad * z).sum(dim=-1).abs().max().item()
        assert (along < 1e-5) == (kind == "normalised")


@pytest.mark.parametrize("codebook", ["gradient", "moving"])
def test_codes_are_the_same_under_autocast_and_decode_to_the_reconstruction(codebook: str):
    model, images = vitvq(codebook=codebook).eval(), pictures()
    reconstruction, found, _ = model.parts(images)
    torch.testing.assert_close(model.decode(found.indices, (4, 4)), reconstruction, rtol=1e-4, atol=1e-5)
    z = model.latents(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantizer(z).indices, found.indices)
        losses = model.train().losses([images.unsqueeze(1)])
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("codebook", ["gradient", "moving"])
def test_a_resumed_step_is_equal(codebook: str):
    """The codebook, its averages, its random restarts and the count of used codes are part of the state."""
    assert resumes_exactly(vitvq(codebook=codebook), pictures())


def test_rare_codes_become_latents_of_the_batch():
    torch.manual_seed(0)
    quantizer = MovingQuantizer(8, 4, decay=0.5, restart=0.5).train()
    z = torch.randn(1, 1, 4) + 0.01 * torch.randn(1, 64, 4)  # all near one direction
    quantizer(z)
    unit = nn.functional.normalize(z, dim=-1)[0]
    nearest = (quantizer.codebook @ unit.T).amax(dim=1)
    assert (nearest > 0.999).all() and len(quantizer(z).indices.unique()) > 1
    still = MovingQuantizer(8, 4, decay=0.5).train()
    still(z)
    assert len(still(z).indices.unique()) == 1


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for restart in (0.0, 0.5):
        torch.manual_seed(rank)
        torch.save(after_three(slice(4 * rank, 4 * rank + 4), restart), f"{folder}/{rank}_{restart}.pt")
    dist.barrier()
    dist.destroy_process_group()


def after_three(own: slice, restart: float) -> dict[str, torch.Tensor]:
    """The state of a codebook that has seen a share of eight images three times."""
    generator = torch.Generator().manual_seed(5)
    quantizer = MovingQuantizer(16, 4, restart=restart).train()
    quantizer.codebook.copy_(nn.functional.normalize(torch.randn(16, 4, generator=generator), dim=-1))
    quantizer.embed_avg.copy_(quantizer.codebook)
    for _ in range(3):
        quantizer(torch.randn(8, 6, 4, generator=generator)[own])
    return quantizer.state_dict()


@pytest.mark.slow(15)
def test_two_processes_have_one_codebook(tmp_path: Path):
    """That of one process with all images; codes restart alike too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    for restart in (0.0, 0.5):
        first, second = (torch.load(tmp_path / f"{rank}_{restart}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
        if not restart:
            for name, value in after_three(slice(0, 8), 0.0).items():
                torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def test_two_steps_through_the_launcher_and_its_file(tmp_path: Path):
    """tokenizer.safetensors is read as a tokenizer of normalised images, and by nothing that expects an encoder."""
    runner = train_small("../tokenizer/cifar10_vitvq", tmp_path, SMALL_RUN)
    assert runner.iter == 2
    path = tmp_path / "work" / "tokenizer.safetensors"
    assert not (tmp_path / "work" / "encoder.safetensors").exists()
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        load_encoder(path)
    with pytest.raises(UserError, match=r"epoch_1\.pth"):
        load_encoder(tmp_path / "work" / "epoch_1.pth")
    state = torch.load(tmp_path / "work" / "epoch_1.pth", weights_only=True)["state_dict"]
    with safe_open(path, framework="pt") as file:
        assert all(torch.equal(file.get_tensor(name), state[f"model.{name}"]) for name in file.keys())  # noqa: SIM118


def trained(folder: Path, **options) -> tuple[ViTVQ, Path]:
    model = vitvq(**options)
    steps(model, pictures(), 40, lr=3e-3)
    save_autoencoder(folder / "tokenizer.safetensors", model)
    return model, folder / "tokenizer.safetensors"


def test_mapet_predicts_its_codes(tmp_path: Path):
    model, path = trained(tmp_path)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocabulary, tokenizer.patch_size, tokenizer.origin["kind"]) == (16, 4, "vitvq")
    images = pictures(4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(tokenizer.tokens((images - mean) / std), model.eval().tokens(images))
    assert torch.equal(tokenizer.tokens_of_pixels(images), model.tokens(images))
    options = {"img_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    mapet = adpe.create_method("mapet", "adpe_vit_tiny_patch4", tokenizer=str(path), **options)
    mapet.losses([((images - mean) / std).unsqueeze(1)])
    assert mapet.made_with()["tokenizer"]["vocabulary"] == 16
    assert torch.equal(mapet.used, torch.bincount(model.tokens(images).flatten(), minlength=16))


@pytest.mark.parametrize(("fault", "key"), [("used", "12.5%"), ("alike", "alike"), ("options", "tokenizer")])
def test_files_that_tell_nothing_are_refused(fault: str, key: str, tmp_path: Path):
    model, path = trained(tmp_path)
    if fault == "used":
        model.used[:2], model.used[2:] = 100, 0
    elif fault == "alike":
        model.quantizer.codebook.copy_(model.quantizer.codebook[:1].clone())
    else:
        model.options["dim"] = 64
    save_autoencoder(path, model)
    with pytest.raises(UserError, match=key):
        load_tokenizer(path)


def test_unused_codes_are_a_collapse_over_a_pass():
    """Those of the last whole pass, not of all time."""
    model = vitvq(codes=64)
    assert model.collapse(Progress()) is None
    model.used[:] = 200
    model._count(torch.zeros(8, 1600, dtype=torch.long), epoch=1)
    assert model.usage() == pytest.approx((1.0, 64.0)) and model.collapse(Progress(epoch=1)) is None
    model._count(torch.zeros(1, 1, dtype=torch.long), epoch=2)
    assert model.usage() == pytest.approx((1 / 64, 1.0))
    assert "64 codes" in model.collapse(Progress(epoch=2))
    assert model.scalars()["codes/perplexity"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"img_size": 18}, "img_size=18"),
        ({"dim": 30}, "dim=30"),
        ({"codes": 1}, "codes=1"),
        ({"l2": 0.0}, "l2=0"),
        ({"mlp_activation": "relu"}, "relu"),
        ({"codebook": "fixed"}, "fixed"),
        ({"codebook": "gradient", "straight_through": "z"}, "straight_through"),
        ({"restart": 1.0}, "restart=1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, key: str):
    with pytest.raises(ValueError, match=key):
        vitvq(**options)


@pytest.mark.parametrize("shape", [(1, 3, 18, 16), (1, 4, 16, 16)])
def test_images_that_cannot_be_are_refused(shape: tuple):
    with pytest.raises(UserError, match=f"{shape[1]} x {shape[2]} x {shape[3]}"):
        vitvq().tokens(torch.rand(shape))


@pytest.mark.parametrize("options", [{"codebook": "gradient", "straight_through": "latent"}, {"codebook": "moving"}])
def test_it_learns_to_reconstruct_and_draws(options: dict):
    model, images = vitvq(**options), pictures()
    logged = steps(model, images, 200, lr=3e-3)
    flat = images.mean(dim=(0, 2, 3), keepdim=True)
    assert logged[-1]["error_l2"] < 0.5 * float((images - flat).square().mean())
    figures = model.eval().figures([images[:3].unsqueeze(1)], (0, 0, 0), (1, 1, 1))
    assert list(figures) == ["reconstructions"]


def test_the_files_own_words(tmp_path: Path):
    _, path = trained(tmp_path)
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["adpe.tokenizer"])
    assert said["kind"] == "vitvq" and said["options"]["dim"] == 32 and 0.5 < said["used"] <= 1
