from __future__ import annotations

import re
from functools import partial

import pytest
import specification as spec
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmViT

import adpe

TINY = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with every parameter drawn anew: biases, tables and tokens that start at zero act too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.5 * parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def images(height: int, width: int, count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def timm_twin(model: adpe.VisionTransformer, pos_embed: torch.Tensor, **options) -> TimmViT:
    """timm's encoder with the same weights and the table `pos_embed`."""
    twin = TimmViT(
        img_size=model.img_size, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), num_classes=model.num_classes,
        global_pool="avg", fc_norm=bool(model.num_classes), dynamic_img_size=True, **TINY, **options,
    )  # fmt: skip
    twin.load_state_dict({**model.state_dict(), "pos_embed": pos_embed}, strict=True)
    return twin.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (8, 40)])
def test_features_are_timms(size) -> None:
    model = randomized(adpe.VisionTransformer(img_size=size, **TINY)).eval()
    table = adpe.models.pos_embed.sincos_table(size[0] // 4, size[1] // 4, 32, torch.float32, torch.device("cpu"))
    x = images(*size)
    close(model.forward_features(x), timm_twin(model, table).forward_features(x))


@pytest.mark.parametrize("size", [(16, 24), (32, 32), (20, 12)])
def test_learned_positions_and_their_resampling_are_timms(size) -> None:
    model = randomized(adpe.VisionTransformer((16, 24), learned_pos_embed=True, pos_embed_resize="timm", **TINY))
    model.eval()
    x = images(*size)
    close(model.forward_features(x), timm_twin(model, model.pos_embed).forward_features(x))
    if size != (16, 24):
        theirs = resample_abs_pos_embed(model.pos_embed, [size[0] // 4, size[1] // 4], [4, 6])
        close(model.position_table((size[0] // 4, size[1] // 4), x), theirs, 1e-6)


def test_logits_are_timms() -> None:
    model = randomized(adpe.VisionTransformer(img_size=16, num_classes=5, **TINY)).eval()
    table = adpe.models.pos_embed.sincos_table(4, 4, 32, torch.float32, torch.device("cpu"))
    x = images(16, 16)
    assert model(x).shape == (2, 5)
    close(model(x), timm_twin(model, table)(x))
    close(model.forward_head(model.forward_features(x), pre_logits=True),
          timm_twin(model, table).forward_head(model.forward_features(x), pre_logits=True))  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": [0, 2]},
        {"indices": [-1]},
        {"indices": 2},
        {"indices": [0, 1], "stop_early": True},
        {"indices": [0, 2], "norm": True},
        {"indices": [1], "output_fmt": "NLC"},
        {"indices": [1, 2], "return_prefix_tokens": True},
        {"indices": [1], "intermediates_only": True},
    ],
    ids=str,
)
def test_forward_intermediates_means_what_timms_does(options) -> None:
    model = randomized(adpe.VisionTransformer(img_size=(16, 24), learned_pos_embed=True, **TINY)).eval()
    x = images(16, 24)
    ours = model.forward_intermediates(x, **options)
    theirs = timm_twin(model, model.pos_embed).forward_intermediates(x, **options)
    if not options.get("intermediates_only"):
        close(ours[0], theirs[0])
        ours, theirs = ours[1], theirs[1]
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        pairs = zip(mine, other, strict=True) if options.get("return_prefix_tokens") else [(mine, other)]
        for a, b in pairs:
            assert a.shape == b.shape
            close(a, b)


def test_forward_intermediates_refuses() -> None:
    model = adpe.VisionTransformer(img_size=16, **TINY)
    with pytest.raises(ValueError, match=r"\[3\] do not exist in an encoder of 3 blocks"):
        model.forward_intermediates(images(16, 16), indices=[3])
    with pytest.raises(ValueError, match="NHWC"):
        model.forward_intermediates(images(16, 16), output_fmt="NHWC")


@pytest.mark.parametrize("query", ["scaled", "unscaled"])
@pytest.mark.parametrize("position", ["relative", "relative_interpolated"])
@pytest.mark.parametrize("size", [(16, 16), (12, 28)])
def test_relative_features_are_the_equation(size, position, query) -> None:
    model = adpe.VisionTransformer(img_size=size, position=position, relative_query=query, **TINY)
    model = randomized(model).double().eval()
    state, x = model.state_dict(), images(*size).double()
    grid = size[0] // 4, size[1] // 4
    with torch.no_grad():
        y = spec.patchify(x, 4) @ state["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1).T
        y = y + state["patch_embed.proj.bias"] + spec.sincos(*reversed(spec.coordinates(grid)), 32)
        y = torch.cat([state["cls_token"].expand(2, -1, -1), y], 1)
        scale = 8**0.5 if query == "unscaled" else 1.0
        for i in range(3):
            rows = spec.relative_rows(state[f"blocks.{i}.attn.rel_pos_table"], grid, position != "relative")
            y = spec.block(y, state, f"blocks.{i}", 4, rows[None], scale)
        close(model.forward_features(x), spec.layer_norm(y, state, "norm"), 1e-6)


def test_one_encoder_takes_several_sizes_one_after_the_other() -> None:
    """Tables are those of the grid at hand, whatever came before."""
    model = randomized(adpe.VisionTransformer(img_size=16, position="relative_interpolated", **TINY)).eval()
    first = model.forward_features(images(16, 24))
    model.forward_features(images(24, 16))
    model.forward_features(images(32, 32))
    assert torch.equal(model.forward_features(images(16, 24)), first)


def test_the_relative_table_acts_and_learns() -> None:
    model = randomized(adpe.VisionTransformer(img_size=16, position="relative", **TINY))
    model.forward_features(images(16, 16)).square().mean().backward()
    for block in model.blocks:
        assert block.attn.rel_pos_table.grad.abs().max() > 1e-7
        assert block.attn.rel_pos_table.shape == (8, 50)


@pytest.mark.parametrize("position", ["absolute", "relative", "relative_interpolated"])
def test_recomputed_blocks_have_the_same_gradients(position) -> None:
    model = randomized(adpe.VisionTransformer(img_size=16, position=position, **TINY))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.forward_features(images(16, 16)).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_stochastic_depth_grows_linearly_and_keeps_the_mean() -> None:
    model = adpe.VisionTransformer(img_size=16, drop_path_rate=0.4, **TINY)
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.2, 0.4]
    torch.manual_seed(0)
    dropped = model.blocks[2].drop_path.train()(torch.ones(20000, 2, 1))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert torch.equal(dropped[:, 0], dropped[:, 1])  # whole samples
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(model.blocks[2].drop_path.eval()(torch.ones(3, 2, 1)), torch.ones(3, 2, 1))


def test_start() -> None:
    torch.manual_seed(0)
    model = adpe.VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=1, num_heads=4, num_classes=10)
    qkv, patch = model.blocks[0].attn.qkv, model.patch_embed.proj.weight
    bound = (6 / (128 + 384)) ** 0.5
    assert bound * 0.99 < qkv.weight.abs().max() <= bound
    assert not qkv.bias.any()
    patch_bound = (6 / (128 + 48)) ** 0.5
    assert patch_bound * 0.99 < patch.abs().max() <= patch_bound
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "rope"}, "position must be one of absolute, relative, relative_interpolated, none; got 'rope'"),
        ({"relative_query": "half"}, "relative_query must be scaled or unscaled; got 'half'"),
        ({"embed_dim": 34}, "embed_dim 34 must be divisible by 4 and by num_heads 4"),
        ({"embed_dim": 36, "num_heads": 8}, "embed_dim 36 must be divisible by 4 and by num_heads 8"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        adpe.VisionTransformer(img_size=16, **{**TINY, **options})


def test_images_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"16x18 pixels are not divisible by.*4"):
        adpe.VisionTransformer(img_size=16, **TINY)(images(16, 18))


def test_layer_depth() -> None:
    model = adpe.VisionTransformer(img_size=16, num_classes=2, **TINY)
    depths = {"cls_token": 0, "patch_embed.proj.bias": 0, "blocks.0.norm1.weight": 1, "blocks.2.mlp.fc2.bias": 3,
              "fc_norm.weight": 4, "head.bias": 4}  # fmt: skip
    assert {name: model.layer_depth(name) for name in depths} == {name: (depth, 5) for name, depth in depths.items()}
    with pytest.raises(KeyError, match=r"blocks\.7"):
        model.layer_depth("blocks.7.norm1.weight")


@pytest.mark.parametrize("options", [
    {}, {"position": "relative"}, {"position": "relative_interpolated"}, {"use_rel_pos_bias": True},
    {"position": "relative", "class_token": False, "window_size": 3, "use_rel_pos": True},
], ids=str)  # fmt: skip
def test_export_gives_the_same_and_leaves_nothing_behind(options) -> None:
    """A program of torch.export computes what eager does, and no tensor of the tracer stays in a table's cache."""
    model = randomized(adpe.VisionTransformer(img_size=20, **options, **TINY)).eval()
    x = images(20, 20)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        with torch.no_grad():
            eager = model(x)
            close(program.module()(x), eager)
    assert type(model.position_table((5, 5), x)) is torch.Tensor or model.pos_embed is not None
    for term in model.relative_terms((5, 5)):
        assert term is None or {type(weight) for weight in term.weights} == {torch.Tensor}


@pytest.mark.slow
def test_compiled_blocks_do_not_make_relative_tables_anew() -> None:
    """The tables come from outside: a compiled block's graph has no step that makes offsets or buckets."""
    operators: set[str] = set()

    def backend(graph: torch.fx.GraphModule, inputs):
        operators.update(str(node.target) for node in graph.graph.nodes if node.op != "placeholder")
        return graph.forward

    model = randomized(adpe.VisionTransformer(img_size=16, position="relative_interpolated", **TINY)).eval()
    x = images(16, 16)
    with torch.no_grad():
        expected = model.forward_features(x)
        torch._dynamo.reset()
        for block in model.blocks:
            block.compile(backend=backend)
        close(model.forward_features(x), expected)
    assert any("matmul" in name for name in operators)
    assert not [name for name in operators if re.search(r"arange|floor|log|meshgrid|where", name)]
