from __future__ import annotations

import socket
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import adpe
from adpe.methods.adversary import (
    Adversary,
    CoordinateAdversary,
    MaskTokenAdversary,
    OffsetAdversary,
    RandomShift,
    build_adversary,
)

KINDS = {
    "embedding": ("absolute", "embedding"),
    "coordinate": ("absolute", "coordinate"),
    "relative_embedding": ("relative", "embedding"),
    "interpolated_embedding": ("relative_interpolated", "embedding"),
    "relative_coordinate": ("relative", "coordinate"),
}


def autoencoder(kind: str | None, seed: int = 0, **options) -> adpe.MAE:
    """A small model whose every parameter but the adversary is drawn at random."""
    position, adversary = KINDS[kind] if kind else ("absolute", None)
    torch.manual_seed(seed)
    model = adpe.create_model(
        "adpe_vit_tiny_patch4", img_size=16, embed_dim=32, depth=2, num_heads=2, position=position, adversary=adversary,
        decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2, **options,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("adversary."):
                parameter.add_(
                    torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
                )
    return model


def batch(count: int = 4, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    length = size[0] * size[1] // 16
    return torch.randn(count, 3, *size, generator=generator), torch.rand(count, length, generator=generator)


def adversary_of(model: adpe.MAE) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith("adversary.")}


SHAPES = {
    "embedding": {"adversary.token": (1, 1, 32)},
    "coordinate": {"adversary.shift": (2,)},
    "relative_embedding": {"adversary.encoder": (2, 16), "adversary.decoder": (2, 8)},
    "interpolated_embedding": {"adversary.encoder": (2, 16), "adversary.decoder": (2, 8)},
    "relative_coordinate": {"adversary.encoder": (2, 2), "adversary.decoder": (2, 2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters(kind) -> None:
    model = autoencoder(kind)
    values = adversary_of(model)
    assert {name: tuple(value.shape) for name, value in values.items()} == SHAPES[kind]
    if kind == "embedding":
        assert model.mask_token is None
        assert 0.01 < values["adversary.token"].std() < 0.03
    else:
        assert model.mask_token.shape == (1, 1, 32)
        assert not any(value.any() for value in values.values())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embedding"])
def test_at_the_start_the_loss_is_that_of_mae_plus(kind) -> None:
    model = autoencoder(kind)
    loss = model(*batch())
    model.adversary = Adversary()
    assert loss.item() == pytest.approx(model(*batch()).item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_ascent_raises_the_loss_of_a_held_batch(kind) -> None:
    """The model is frozen; a few steps of the ascending group alone."""
    model = autoencoder(kind)
    groups = model.parameter_groups(0.0, 0.0, adversary_lr=0.05)
    optimizer = torch.optim.AdamW([group for group in groups if group["name"] == "adversary"], betas=(0.9, 0.95))
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith("adversary.")}
    losses = []
    for _ in range(9):
        loss = model(*batch())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] > losses[0] * 1.0005, losses
    assert all(b > a for a, b in pairwise(losses)), losses
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)


def largest_gradients(model: adpe.MAE) -> tuple[float, float]:
    """Largest gradient of the adversary, and of everything."""
    model(*batch()).backward()
    sizes = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
    return max(size for name, size in sizes.items() if name.startswith("adversary.")), max(sizes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_not_noise(kind) -> None:
    ours, largest = largest_gradients(autoencoder(kind))
    assert ours > 1e-3 * largest


def test_the_references_relative_embedding_acts_on_nothing() -> None:
    """It adds one number to a whole row of logits, which the softmax does not see; ours it sees."""
    model = autoencoder("relative_embedding", adversary_variant="reference")
    ours, largest = largest_gradients(model)
    assert ours < 1e-6 * largest
    losses = {}
    for variant in ("reference", "masked_keys"):
        model = autoencoder("relative_embedding", adversary_variant=variant)
        before = model(*batch()).item()
        for parameter in model.adversary.parameters():
            torch.nn.init.normal_(parameter, std=2.0)
        losses[variant] = abs(model(*batch()).item() / before - 1)
    assert losses["reference"] < 1e-6
    assert losses["masked_keys"] > 1e-3


def test_the_adversary_moves_masked_patches_alone() -> None:
    """Without an effect where nothing is masked: the class token and visible patches keep their positions."""
    adversary = CoordinateAdversary()
    torch.nn.init.constant_(adversary.shift, 0.7)
    positions = adpe.models.pos_embed.sincos_table(3, 5, 8, torch.float32, torch.device("cpu"))[:, 1:]
    masked = torch.zeros(2, 15, dtype=torch.bool)
    masked[1, 4] = True
    moved = adversary.patch_positions(positions, masked, (3, 5)).expand(2, -1, -1)
    assert torch.equal(moved[~masked], positions.expand(2, -1, -1)[~masked])
    column, row = 4 + 0.7, 0 + 0.7
    torch.testing.assert_close(moved[1, 4], adpe.models.pos_embed.sincos(torch.tensor([column, row]), 8))


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("kind", ["coordinate", "relative_coordinate"])
def test_gradcheck_through_the_loss(kind, size) -> None:
    """Away from the kinks of the piecewise index and of bilinear reading."""
    model = autoencoder(kind).double()
    images, noise = batch(2, size)
    inputs = []
    generator = torch.Generator().manual_seed(3)
    for shape in SHAPES[kind].values():
        values = 0.2 + 0.15 * torch.rand(shape, generator=generator, dtype=torch.float64)
        inputs.append((values * torch.tensor([1.0, -1.0])).requires_grad_())

    def loss(*shifts: torch.Tensor) -> torch.Tensor:
        return functional_call(model, dict(zip(SHAPES[kind], shifts, strict=True)), (images.double(), noise.double()))

    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_l2_projection_scales_each_row_of_a_stack() -> None:
    adversary = OffsetAdversary(3, 1, "l2", 0.5)
    with torch.no_grad():
        adversary.encoder.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [-0.1, 0.2]]))
        adversary.decoder.copy_(torch.tensor([[0.0, -2.0]]))
    adversary.project()
    torch.testing.assert_close(adversary.encoder.data, torch.tensor([[0.3, 0.4], [0.3, 0.4], [-0.1, 0.2]]))
    assert torch.equal(adversary.encoder[2], torch.tensor([-0.1, 0.2]))  # inside: untouched
    torch.testing.assert_close(adversary.decoder.data, torch.tensor([[0.0, -0.5]]))


def test_l2_projection_of_one_tensor() -> None:
    adversary = MaskTokenAdversary(torch.nn.Parameter(torch.zeros(1, 1, 16)), "l2", 2.0)
    torch.nn.init.constant_(adversary.token, -1.0)
    adversary.project()
    torch.testing.assert_close(adversary.token.data, torch.full((1, 1, 16), -0.5))


def test_linf_projection_clamps() -> None:
    adversary = CoordinateAdversary("linf", 0.25)
    with torch.no_grad():
        adversary.shift.copy_(torch.tensor([0.7, -0.1]))
    adversary.project()
    assert torch.equal(adversary.shift.data, torch.tensor([0.25, -0.1]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_is_safe_at_zero(norm) -> None:
    for adversary in (CoordinateAdversary(norm, 0.1), OffsetAdversary(2, 2, norm, 0.1)):
        adversary.project()
        assert all(torch.equal(p, torch.zeros_like(p)) for p in adversary.parameters())


def test_no_norm_leaves_it_free() -> None:
    adversary = CoordinateAdversary()
    torch.nn.init.constant_(adversary.shift, 1e6)
    adversary.project()
    assert torch.equal(adversary.shift.data, torch.full((2,), 1e6))


@pytest.mark.parametrize("epsilon", [None, 0.0, -1.0])
def test_a_norm_needs_a_positive_epsilon(epsilon) -> None:
    with pytest.raises(ValueError, match="needs both, epsilon positive"):
        CoordinateAdversary("l2", epsilon)


def train(model: torch.nn.Module, inner: adpe.MAE, rank: int, world: int) -> None:
    """Three steps of both players on this rank's share of eight images."""
    groups = inner.parameter_groups(1e-3, 0.05, adversary_lr=1e-2)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        images, noise = torch.randn(8, 3, 16, 16, generator=generator), torch.rand(8, 16, generator=generator)
        optimizer.zero_grad()
        model(images[rank::world], noise[rank::world]).backward()
        optimizer.step()
        inner.adversary.project()


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    states = []
    for kind in KINDS:
        # The ranks start differently: what they share they have from DDP.
        inner = autoencoder(kind, seed=rank, adversary_norm="linf", adversary_epsilon=0.025)
        train(DistributedDataParallel(inner), inner, rank, 2)
        states.append(adversary_of(inner))
    torch.save(states, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_hold_the_same_adversary(tmp_path) -> None:
    """Two processes with half of the batch each end with the adversary of one process with all of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for kind, a, b in zip(KINDS, first, second, strict=True):
        alone = autoencoder(kind, seed=0, adversary_norm="linf", adversary_epsilon=0.025)
        train(alone, alone, 0, 1)
        expected = adversary_of(alone)
        assert a.keys() == expected.keys()
        for name, value in a.items():
            assert torch.equal(value, b[name]), (kind, name)
            assert value.any()
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_random_control_draws_uniformly_from_the_adversarys_ball(norm) -> None:
    control = build_adversary("absolute", "random", (32, 2, 2), (16, 2, 2), norm=norm, epsilon=0.5)
    assert isinstance(control, RandomShift) and not control.learns and not list(control.parameters())
    torch.manual_seed(0)
    points = control.draw(20_000, torch.device("cpu"))
    if norm == "linf":
        assert 0.499 < points.abs().max() <= 0.5
        assert points.std(0) == pytest.approx([0.5 / 3**0.5] * 2, rel=0.02)  # of a uniform distribution
    else:
        radius = points.norm(dim=1)
        assert 0.499 < radius.max() <= 0.5
        assert radius.mean().item() == pytest.approx(0.5 * 2 / 3, rel=0.02)  # uniform in the disc
    assert points.mean(0).abs().max() < 0.01


@pytest.mark.parametrize(("position", "learned"), [("absolute", "shift"), ("relative", "encoder")])
def test_the_random_control_moves_what_the_coordinate_adversary_would(position, learned) -> None:
    options = {"adversary_norm": "linf", "adversary_epsilon": 0.5}
    kind = "coordinate" if position == "absolute" else "relative_coordinate"
    model = autoencoder(kind)
    images, noise = batch()
    still = model(images, noise).item()
    control = build_adversary(
        model.encoder.position, "random", (32, 2, 2), (16, 2, 2), "masked_keys", *options.values()
    )
    torch.manual_seed(5)
    drawn = [control.draw(rows, torch.device("cpu")) for rows in ((1,) if position == "absolute" else (2, 2))]
    with torch.no_grad():
        if position == "absolute":
            model.adversary.shift.copy_(drawn[0][0])
        else:
            model.adversary.encoder.copy_(drawn[0])
            model.adversary.decoder.copy_(drawn[1])
    expected = model(images, noise).item()
    model.adversary = control
    torch.manual_seed(5)
    assert model(images, noise).item() == expected != still
    assert model(images, noise).item() != expected  # a fresh draw every time


def test_the_random_control_needs_a_ball_and_interpolated_positions() -> None:
    with pytest.raises(ValueError, match="adversary_norm and adversary_epsilon"):
        autoencoder_options(adversary="random")
    with pytest.raises(ValueError, match="relative_interpolated"):
        build_adversary("relative", "random", (32, 2, 2), (16, 2, 2), norm="l2", epsilon=1.0)
    model = autoencoder_options(position="relative", adversary="random", adversary_norm="l2", adversary_epsilon=1.0)
    assert model.encoder.position == "relative_interpolated"
    assert [group["name"] for group in model.parameter_groups(1e-3, 0.05, adversary_lr=1e-3)] == ["decay", "no_decay"]


def autoencoder_options(**options) -> adpe.MAE:
    return adpe.create_model("adpe_vit_tiny_patch4", img_size=16, embed_dim=32, depth=1, num_heads=2, **options)
