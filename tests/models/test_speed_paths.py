"""The quick ways of computing give what the plain ones give."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from test_vit import images, randomized
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import adpe
from adpe.engine.pretraining import AdPEPretraining
from adpe.methods.base import Progress
from adpe.methods.targets.pixels import patchify
from adpe.models import fused_attention, layers, pos_embed
from adpe.models.fused_attention import attend
from adpe.models.pos_embed import cached_axis_weights, relative_logits, sincos_table, token_weights
from benchmarks.speed import pretraining_speed as speed
from benchmarks.speed.reference_model import PlainAutoencoder

TINY = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2}
VARIANTS = {
    **{name: ({"position": v.position}, {"adversary": v.adversary}) for name, v in speed.VARIANTS.items()},
    "interpolated embedding": ({"position": "relative_interpolated"}, {"adversary": "embedding"}),
    "relative reference": ({"position": "relative"}, {"adversary": "embedding", "adversary_variant": "reference"}),
    "raw pixels": ({}, {"norm_pix_loss": False, "mask_ratio": 0.5}),
}
CPU = torch.device("cpu")


def autoencoder(variant: str, size: tuple[int, int] = (16, 16)) -> adpe.MAE:
    encoder, options = VARIANTS[variant]
    return randomized(
        adpe.masked_autoencoder(adpe.VisionTransformer(img_size=size, **TINY, **encoder), **options, **DECODER)
    )


def noise(model: adpe.MAE, x: torch.Tensor) -> torch.Tensor:
    shape = len(x), patchify(x, 4).shape[1]
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)


def loss_and_gradients(model, x, u) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(x, u)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def agree(ours, theirs, tolerance: float) -> None:
    """Losses, and every gradient on the scale of the model's largest."""
    (loss, gradients), (their_loss, their_gradients) = ours, theirs
    assert loss.item() == pytest.approx(their_loss.item(), rel=tolerance)
    assert gradients.keys() == their_gradients.keys()
    largest = max(g.abs().max().item() for g in their_gradients.values())
    assert largest > 1e-3
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=tolerance, atol=tolerance * largest, msg=name)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (24, 8)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_implementation_agrees(variant, size) -> None:
    """Two implementations, the same loss and gradients of both players, in float64."""
    model = autoencoder(variant, size).double()
    x = images(*size, count=3).double()
    u = noise(model, x)
    agree(loss_and_gradients(model, x, u), loss_and_gradients(PlainAutoencoder(model), x, u), 1e-9)


def test_the_benchmark_sees_a_disagreement() -> None:
    """Its check passes equal models and catches one wrong weight."""
    model = autoencoder("relative coordinate")
    x = images(16, 16)
    u = noise(model, x)
    plain = PlainAutoencoder(model)
    loss, gradient = speed.disagreement(model, plain, x, u)
    assert loss < 1e-5
    assert gradient < 1e-4
    with torch.no_grad():
        plain.decoder.pred.bias[0] += 0.05
    loss, gradient = speed.disagreement(model, plain, x, u)
    assert loss > 1e-5
    assert gradient > 1e-4


def test_matmul_flops_are_those_that_torch_counts() -> None:
    model = autoencoder("absolute", (12, 20)).double()
    x = images(12, 20, count=3).double()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, noise(model, x)).backward()
    assert speed.matmul_flops(model, 3, 15) == counter.get_total_flops()


@pytest.mark.parametrize("variant", ["absolute coordinate", "relative embedding", "relative coordinate"])
def test_checkpointing_changes_no_gradient(variant) -> None:
    model = autoencoder(variant)
    x = images(16, 16)
    u = noise(model, x)
    expected = loss_and_gradients(model, x, u)
    calls = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.encoder.set_grad_checkpointing()
    agree(loss_and_gradients(model, x, u), expected, 1e-6)
    assert len(calls) == 2  # once forward, once again in the backward pass


class Products(TorchDispatchMode):
    """Dtypes of the matrix products that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.dtypes.add(out.dtype)
        return out


@pytest.mark.parametrize("variant", speed.VARIANTS)
def test_bfloat16_autocast(variant) -> None:
    """The loss within 2% of float32's, gradients in float32, and every matrix product in bfloat16."""
    model = autoencoder(variant)
    x = images(16, 16, count=4)
    u = noise(model, x)
    expected, _ = loss_and_gradients(model, x, u)
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x, u)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert loss.item() != expected.item()
    assert products.dtypes == {torch.bfloat16}
    model.zero_grad()
    loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def pretraining_pair(variant: str, compile: bool) -> tuple[AdPEPretraining, AdPEPretraining]:
    """An eager pretraining model, and one with the same weights that may be compiled."""
    encoder, options = VARIANTS[variant]
    options = {"model": "adpe_vit_tiny_patch4", "img_size": 16, **TINY, **DECODER, **encoder, **options}
    del options["patch_size"]
    eager = AdPEPretraining(**options)
    randomized(eager)
    compiled = AdPEPretraining(compile=compile, **options)
    compiled.load_state_dict(eager.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return eager, compiled


@pytest.mark.slow(4)
@pytest.mark.parametrize("variant", ["absolute coordinate", "relative coordinate"])
def test_compiled_blocks_agree(variant) -> None:
    """Every block traced and differentiated as a graph: loss, gradients and features as in eager."""
    eager, compiled = pretraining_pair(variant, compile=False)
    for block in compiled.model.compiled():
        block.compile(backend="aot_eager")
    x = images(16, 16)
    u = noise(eager.model, x)
    agree(loss_and_gradients(compiled.model, x, u), loss_and_gradients(eager.model, x, u), 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not torch._dynamo.utils.counters["graph_break"]
    with torch.no_grad():
        expected = eager(x)
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow(40)
def test_compiled_kernels_agree() -> None:
    """`compile=True` of the pretraining model compiles every block; by C++, the encoder's features and gradients.

    The encoder alone, because every other shape of a block costs ten runs of the compiler.
    """
    eager, compiled = pretraining_pair("relative coordinate", compile=True)
    blocks = list(compiled.model.compiled())
    assert {*compiled.model.encoder.blocks, *compiled.model.decoder.blocks} <= {*blocks}
    assert all(block._compiled_call_impl is not None for block in blocks)
    x = images(16, 16)
    weight = torch.randn(eager(x).shape, generator=torch.Generator().manual_seed(3))

    def features_and_gradients(model: AdPEPretraining) -> list[torch.Tensor]:
        features = model(x)
        parameters = [*model.model.encoder.blocks.parameters()]
        return [features.detach(), *torch.autograd.grad((features * weight).sum(), parameters)]

    # One thread: workers of the compiler's own would each have to import torch.
    with torch._inductor.config.patch(compile_threads=1):
        found = features_and_gradients(compiled)
    counters = torch._dynamo.utils.counters["inductor"]
    assert counters["fxgraph_cache_miss"] + counters["fxgraph_cache_hit"] >= 2  # forward and backward
    for ours, theirs in zip(found, features_and_gradients(eager), strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (18, 2)])
def test_dense_and_separable_contractions_agree(grid, interpolate, monkeypatch) -> None:
    """Values and gradients of the relative logits, in float64."""
    generator = torch.Generator().manual_seed(0)
    n = 1 + grid[0] * grid[1]
    scores = torch.randn(2, 3, n, 50, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(2, 3, n, n, generator=generator, dtype=torch.float64)
    results = []
    for limit in (10**6, 0):
        monkeypatch.setattr(pos_embed, "DENSE_TOKENS", limit)
        logits = relative_logits(scores, grid, interpolate)
        results.append((logits.detach(), *torch.autograd.grad((logits * weight).sum(), scores)))
    for dense, separable in zip(*results, strict=True):
        assert dense.abs().max() > 1
        torch.testing.assert_close(dense, separable, rtol=0, atol=1e-12)


def test_tables_are_made_once_for_a_grid_dtype_and_device() -> None:
    for table in (
        lambda *key: token_weights(*key[:2], True, *key[2:]),
        lambda *key: cached_axis_weights(*key[:2], False, *key[2:]),
        lambda *key: sincos_table(*key[:2], 16, *key[2:]),
    ):
        first = table(3, 5, torch.float32, CPU)
        assert table(3, 5, torch.float32, CPU) is first
        assert table(5, 3, torch.float32, CPU) is not first
        assert table(3, 5, torch.bfloat16, CPU) is not first
    model = autoencoder("relative")
    x = images(16, 16)
    model(x, noise(model, x))
    misses = token_weights.cache_info().misses, sincos_table.cache_info().misses
    model(x, noise(model, x))
    assert (token_weights.cache_info().misses, sincos_table.cache_info().misses) == misses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused_tokens", [0, 600])
@pytest.mark.parametrize("relative", [False, True])
def test_every_way_of_attention_is_the_softmax(relative, fused_tokens, dtype, monkeypatch) -> None:
    monkeypatch.setattr(fused_attention, "FUSED_TOKENS", fused_tokens)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 9, 8, generator=generator, dtype=torch.float64).unbind(0)
    logits = torch.randn(2, 3, 9, 9, generator=generator, dtype=torch.float64) if relative else None
    weights = torch.einsum("bhid,bhjd->bhij", q, k) + (0 if logits is None else logits)
    expected = torch.einsum("bhij,bhjd->bhid", weights.exp() / weights.exp().sum(-1, keepdim=True), v)
    out = attend(*(x.to(dtype) for x in (q, k, v)), None if logits is None else logits.to(dtype))
    assert out.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_onednn_mlp_agrees() -> None:
    """The MLP in training (oneDNN's layout in float32) and in float64: output and every gradient."""
    mlp = randomized(layers.Mlp(32, 128))
    x = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(1))

    def run(mlp: layers.Mlp, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = mlp(x)
        assert y.layout == torch.strided
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *mlp.parameters()])]

    expected = run(copy.deepcopy(mlp).double(), x.double())
    for ours, theirs in zip(run(mlp, x), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    with torch.no_grad():
        y = mlp.fc2(F.gelu(mlp.fc1(x)))
    torch.testing.assert_close(mlp.eval()(x), y, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", speed.VARIANTS)
def test_a_step_does_not_synchronise_with_the_gpu(variant) -> None:
    model = autoencoder(variant).cuda()
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3, 0.05, adversary_lr=1e-3), fused=True)
    x = images(16, 16).cuda()
    model(x)  # makes the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).backward()
        optimizer.step()
        model.after_step(Progress())
    finally:
        torch.cuda.set_sync_debug_mode("default")
