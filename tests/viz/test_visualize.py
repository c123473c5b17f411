from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from specification import block, relative_rows
from test_adversary import KINDS, autoencoder

import adpe
from adpe.engine.launch import train_main
from adpe.engine.resuming.reproducible import random_state
from adpe.methods.adversary_figures import adversary_scalars, draw_adversary, draw_drift
from adpe.viz.attention_maps import attention_maps, draw_attention
from adpe.viz.figures import draw_images, save_png, to_array
from adpe.viz.reconstructions import GREY, reconstruct

ROOT = Path(__file__).resolve().parents[2]
main = runpy.run_path(str(ROOT / "tools" / "visualize.py"))["main"]

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_a_perfect_prediction_paints_the_image(size, norm_pix_loss, monkeypatch) -> None:
    """The prediction's units are undone: pixels normalised per patch, and by the data's mean and deviation."""
    model = autoencoder("coordinate", norm_pix_loss=norm_pix_loss)
    noise = torch.rand(2, size[0] * size[1] // 16)
    masks = model.random_mask(normalized(pictures(2, *size)), noise).hidden.float()
    monkeypatch.setattr(model, "reconstruct", lambda images, noise: (model.target(images), masks))
    columns = reconstruct(model, normalized(pictures(2, *size)), noise, MEAN, STD)
    assert list(columns) == ["image", "visible", "reconstruction", "pasted"]
    for name in ("image", "reconstruction", "pasted"):
        torch.testing.assert_close(columns[name], pictures(2, *size), rtol=0, atol=1e-5)


def test_visible_and_pasted_patches() -> None:
    model = autoencoder("coordinate", mask_ratio=0.5)
    images, noise = normalized(pictures(2, 16, 16)), torch.arange(16.0).repeat(2, 1)
    columns = reconstruct(model, images, noise, MEAN, STD)
    seen, hidden = columns["visible"][:, :, :8], columns["visible"][:, :, 8:]  # the upper half has the smallest noise
    torch.testing.assert_close(seen, pictures(2, 16, 16)[:, :, :8], rtol=0, atol=1e-6)
    assert torch.equal(hidden, torch.full_like(hidden, GREY))
    assert torch.equal(columns["pasted"][:, :, :8], columns["image"][:, :, :8])
    assert torch.equal(columns["pasted"][:, :, 8:], columns["reconstruction"][:, :, 8:])
    assert not torch.allclose(columns["reconstruction"], columns["image"], atol=0.05)
    figure = draw_images(columns, "title")
    assert len(figure.axes) == 8
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), columns["visible"][0].permute(1, 2, 0).numpy())


def test_scalars() -> None:
    model = autoencoder("coordinate")
    with torch.no_grad():
        model.adversary.shift.copy_(torch.tensor([0.25, -0.5]))
    assert adversary_scalars(model.adversary) == {"adversary/shift_x": 0.25, "adversary/shift_y": -0.5}
    model = autoencoder("relative_coordinate")
    with torch.no_grad():
        model.adversary.encoder.copy_(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert adversary_scalars(model.adversary) == {
        "adversary/encoder_00_row": 0.0, "adversary/encoder_00_column": 1.0,
        "adversary/encoder_01_row": 2.0, "adversary/encoder_01_column": 3.0,
        "adversary/decoder_00_row": 0.0, "adversary/decoder_00_column": 0.0,
        "adversary/decoder_01_row": 0.0, "adversary/decoder_01_column": 0.0,
    }  # fmt: skip
    model = autoencoder("relative_embedding")
    torch.nn.init.constant_(model.adversary.decoder, 0.5)
    scalars = adversary_scalars(model.adversary)
    assert scalars["adversary/decoder_01_norm"] == pytest.approx(0.5 * 8**0.5)
    assert scalars["adversary/encoder_00_norm"] == 0
    model = autoencoder("embedding")
    torch.nn.init.constant_(model.adversary.token, 0.5)
    assert adversary_scalars(model.adversary) == {"adversary/token_norm": pytest.approx(0.5 * 32**0.5)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawing_shows_the_adversary(kind) -> None:
    model = autoencoder(kind)
    before = to_array(draw_adversary(model))
    assert before.dtype == np.uint8
    assert before.shape[2] == 3
    for parameter in model.adversary.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 0.9)
    after = to_array(draw_adversary(model))
    assert (before.shape != after.shape) or (before != after).any()
    assert to_array(draw_adversary(model, (3, 6))).shape[0] > 0


def test_the_displaced_grid_is_drawn_in_its_place() -> None:
    model = autoencoder("coordinate")
    with torch.no_grad():
        model.adversary.shift.copy_(torch.tensor([0.25, -0.5]))
    axis = draw_adversary(model, (3, 4)).axes[0]
    lines = [
        np.array(collection.get_segments()) for collection in axis.collections if hasattr(collection, "get_segments")
    ]
    vertical = lines[2]  # of the displaced grid: 4 columns from row 0 - 0.5 to row 2 - 0.5
    np.testing.assert_allclose(vertical[:, 0], [[0.25 + i, -0.5] for i in range(4)])
    np.testing.assert_allclose(vertical[:, 1], [[0.25 + i, 1.5] for i in range(4)])
    assert "+0.250 columns, -0.500 rows" in axis.get_title()


def test_mae_plus_draws_reconstructions_alone() -> None:
    figures = autoencoder(None).figures([normalized(pictures(2, 16, 16))[:, None]], MEAN, STD)
    assert list(figures) == ["reconstructions"]


def test_drift() -> None:
    curves = {
        "adversary/shift_x": [(10, 0.0), (20, 0.5), (30, 0.25)],
        "adversary/shift_y": [(10, 0.0), (20, -0.5), (30, -1.0)],
        "loss": [(10, 1.0)],
    }
    (axis,) = draw_drift(curves).axes
    drawn = {line.get_label(): np.column_stack(line.get_data()).tolist() for line in axis.lines[:2]}
    assert drawn == {name.removeprefix("adversary/"): [list(p) for p in curves[name]] for name in list(curves)[:2]}
    stacks = {f"adversary/{stage}_{i:02d}_{kind}": [(1, i), (2, 0)]
              for stage in ("encoder", "decoder") for i in range(3) for kind in ("row", "column")}  # fmt: skip
    figure = draw_drift(stacks)
    assert [axis.get_title() for axis in figure.axes] == [
        "encoder, row, by block", "encoder, column, by block", "decoder, row, by block", "decoder, column, by block",
    ]  # fmt: skip
    assert [line.get_label() for line in figure.axes[3].lines[:3]] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="no scalars"):
        draw_drift({"loss": [(1, 1.0)]})


@pytest.mark.parametrize("position", ["absolute", "relative", "relative_interpolated"])
def test_attention_is_what_the_blocks_use(position) -> None:
    """The weights are the equation's, of the class token and of a patch; with them the values give the output."""
    encoder = adpe.VisionTransformer(8, 4, embed_dim=16, depth=2, num_heads=2, position=position).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    images = torch.randn(3, 3, 8, 12, dtype=torch.float64)
    maps = {query: attention_maps(encoder, images, query)[0].double() for query in (None, (1, 2))}
    assert [one.shape for one in maps.values()] == [(3, 2, 2, 3)] * 2
    with torch.no_grad():
        x, grid = encoder.embed(images)
        layer = encoder.blocks[0]
        q, k, _ = layer.attn.qkv(layer.norm1(x)).view(3, 7, 3, 2, 8).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / 8**0.5
        rows = None
        if position != "absolute":
            rows = relative_rows(layer.attn.rel_pos_table, grid, position != "relative")[None]
            logits = logits + torch.einsum("bhid,dij->bhij", q / 8**0.5, rows[0])
        weights = logits.softmax(-1)[..., 1:].unflatten(-1, grid)
        torch.testing.assert_close(maps[None], weights[:, :, 0], rtol=0, atol=1e-6)
        torch.testing.assert_close(maps[1, 2], weights[:, :, 6], rtol=0, atol=1e-6)
        expected = block(x, encoder.state_dict(), "blocks.0", 2, rows)
        torch.testing.assert_close(layer(x, encoder.relative_term(grid)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [
    {"use_rel_pos": True}, {"use_rel_pos": True, "class_token": False},
    {"use_rel_pos_bias": True}, {"use_rel_pos_bias": True, "class_token": False}, {"class_token": False},
    {"use_rel_pos": True, "class_token": False, "window_size": 3, "global_attn_indexes": (1,)},
    {"position": "relative", "class_token": False, "window_size": 3, "global_attn_indexes": ()},
], ids=lambda options: "-".join(options))  # fmt: skip
def test_attention_with_every_kind_of_positions(options) -> None:
    """An image of 4 x 7 patches: with one-hot values in the place of its own, a layer's output is the weights."""
    encoder = adpe.VisionTransformer((16, 28), 4, embed_dim=56, depth=2, num_heads=2, **options).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images, query = torch.randn(2, 3, 16, 28), (3, 4)
    maps = attention_maps(encoder, images, query)
    prefix = encoder.num_prefix_tokens
    seen = []
    for attention in encoder.attentions():
        attention.register_forward_hook(lambda attention, inputs, _: seen.append((attention, inputs)))
    with torch.no_grad():
        encoder.forward_features(images)
        for (attention, inputs), weights in zip(list(seen), maps, strict=True):
            # Tokens of other patches, projected to values that say which patch it is: 28 channels a head.
            torch.nn.init.eye_(attention.proj.weight)
            attention.proj.bias.zero_()
            project = attention.qkv.forward

            def one_hot(x, project=project):
                qkv = project(x)
                qkv[..., 112:] = 0
                patches = torch.eye(28).repeat(1, 2)
                qkv[:, prefix:, 112:] = patches
                return qkv

            attention.qkv.forward = one_hot
            attention.qkv.bias[112:] = 0  # of the padding of windows
            out = attention(*inputs)[:, prefix + query[0] * 7 + query[1]].unflatten(-1, (2, 28)).unflatten(-1, (4, 7))
            torch.testing.assert_close(weights, out, rtol=1e-4, atol=1e-5)
    assert (maps[0] > 0).sum() == (2 * 2 * 1 * 3 if encoder.blocks[0].attn.window_size else 2 * 2 * 28)


def test_attention_of_a_class_token_that_is_not_there(tmp_path, capsys) -> None:
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "use_rel_pos": True}
    encoder = adpe.VisionTransformer(16, 4, **shape)
    backbone = {"type": "AdPEViT", "model": "adpe_vit_tiny_patch4", "img_size": 16, **shape}
    state = {f"backbone.{n}": t for n, t in encoder.state_dict().items() if not n.startswith("norm.")}
    meta = {"cfg": f"model = dict(type='MaskRCNN', backbone={backbone})"}
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "detector.pth")
    images = write_images(tmp_path / "images", 1)
    command = ["attention", str(tmp_path / "detector.pth"), str(images), "--out", str(tmp_path / "a.png")]
    assert main(command) == 2
    assert "ROW,COLUMN" in capsys.readouterr().err
    assert main([*command, "--query", "1,2"]) == 0
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 10


def test_attention_is_drawn_with_its_query() -> None:
    weights = torch.rand(2, 3, 4)
    figure = draw_attention(pictures(2, 12, 16), {"block 0": weights}, query=(2, 1))
    assert figure.axes[0].get_title() == "image"
    assert figure.axes[1].get_title() == "block 0"
    np.testing.assert_array_equal(figure.axes[3].images[1].get_array(), weights[1].numpy())
    (marker,) = figure.axes[1].lines
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (5.5, 9.5)


def test_pngs_are_written_whole(tmp_path) -> None:
    path = save_png(draw_images({"image": pictures(1, 8, 8)}), tmp_path / "folder" / "picture.png")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


# The command line -----------------------------------------------------------------------------------------------------

OPTIONS = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 2,
           "decoder_num_heads": 2}  # fmt: skip


def write_images(folder: Path, count: int, size: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        array = np.random.default_rng(index).integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{index}.png")
    return folder


def write_checkpoint(folder: Path, kind: str) -> Path:
    """As training leaves it: names of mmengine's model, and the config as text."""
    position, adversary = KINDS[kind]
    options = {"type": "AdPEPretraining", "model": "adpe_vit_tiny_patch4", "position": position, "adversary": adversary}
    state = {f"model.{name}": tensor for name, tensor in autoencoder(kind).state_dict().items()}
    text = ", ".join(f"{key}={value!r}" for key, value in {**options, **OPTIONS}.items())
    torch.save({"state_dict": state, "meta": {"cfg": f"lr = 1\nmodel = dict({text})\n"}}, folder / "epoch_2.pth")
    return folder / "epoch_2.pth"


def test_reconstruct(tmp_path) -> None:
    checkpoint, images = write_checkpoint(tmp_path, "relative_coordinate"), write_images(tmp_path / "images", 3)
    out = tmp_path / "a.png"
    common = ["reconstruct", str(checkpoint), str(images), "--count", "2"]
    assert main([*common, "--out", str(out)]) == 0
    first = np.asarray(Image.open(out))
    assert main([*common, "--out", str(out)]) == 0
    assert (np.asarray(Image.open(out)) == first).all()
    assert main([*common, "--out", str(out), "--seed", "1"]) == 0
    assert (np.asarray(Image.open(out)) != first).any()
    assert main([*common, "--out", str(out), "--mask-ratio", "0.5"]) == 0
    assert (np.asarray(Image.open(out)) != first).any()


def test_positions_and_their_drift(tmp_path, capsys) -> None:
    checkpoint = write_checkpoint(tmp_path, "coordinate")
    assert main(["positions", str(checkpoint), "--out", str(tmp_path / "p.png")]) == 0
    assert "no drift drawn" in capsys.readouterr().out
    assert (tmp_path / "p.png").exists()
    assert not (tmp_path / "p_drift.png").exists()
    log = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    lines = [{"adversary/shift_x": 0.1, "step": 1}, {"loss": 1.0, "iter": 1, "step": 1}]
    log.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert main(["positions", str(checkpoint), "--out", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p_drift.png").exists()


@pytest.mark.parametrize("options", [[], ["--heads", "each", "--query", "1,3"], ["--blocks", "0", "--size", "32"]])
def test_attention(options, tmp_path) -> None:
    checkpoint, images = write_checkpoint(tmp_path, "relative_embedding"), write_images(tmp_path / "images", 1)
    out = tmp_path / "attention.png"
    assert main(["attention", str(checkpoint), str(images), "--out", str(out), *options]) == 0
    assert np.asarray(Image.open(out)).std() > 10


def test_attention_of_a_dense_tasks_checkpoint(tmp_path, capsys) -> None:
    encoder = adpe.VisionTransformer(16, 4, embed_dim=32, depth=2, num_heads=2)
    state = {f"backbone.{n}": t for n, t in encoder.state_dict().items() if not n.startswith("norm.")}
    text = (
        "model = dict(type='EncoderDecoder', backbone=dict(type='AdPEViT', model='adpe_vit_tiny_patch4', img_size=16, "
    )
    text += "embed_dim=32, depth=2, num_heads=2, out_indices=[0, 1], init_cfg=dict(type='Pretrained', checkpoint='x')))"
    torch.save({"state_dict": state, "meta": {"cfg": text}}, tmp_path / "segmentor.pth")
    images = write_images(tmp_path / "images", 1)
    arguments = [str(tmp_path / "segmentor.pth"), str(images), "--out", str(tmp_path / "a.png")]
    assert main(["attention", *arguments]) == 0
    assert main(["reconstruct", *arguments]) == 2
    assert "segmentor.pth is not of a masked autoencoder" in capsys.readouterr().err


def test_a_checkpoint_without_a_config_needs_the_model_named(tmp_path, capsys) -> None:
    torch.save(autoencoder("coordinate").state_dict(), tmp_path / "plain.pth")
    command = ["positions", str(tmp_path / "plain.pth"), "--out", str(tmp_path / "p.png")]
    assert main(command) == 2
    assert "give --model" in capsys.readouterr().err
    options = [f"{key}={value}" for key, value in OPTIONS.items()]
    assert main([*command, "--model", "adpe_vit_tiny_patch4", "--set", "adversary=coordinate", *options]) == 0
    assert (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["reconstruct", "{images}", "--mask-ratio", "1"], "--mask-ratio 1.0: expected a number between 0 and 1"),
        (["reconstruct", "{images}", "--size", "18"], "--size 18: expected a multiple of the patch size 4"),
        (["reconstruct", "{images}", "--count", "0"], "--count 0"),
        (["reconstruct", "/nowhere"], "/nowhere"),
        (["reconstruct", "{images}", "--set", "depth"], "--set depth: expected KEY=VALUE"),
        (["reconstruct", "{images}", "--set", "width=3"], "No model can be built"),
        (["reconstruct", "{images}", "--set", "depth=3"], "does not fit the model"),
        (["attention", "{images}", "--query", "4,0"], "within 4 x 4 patches"),
        (["attention", "{images}", "--query", "left"], "expected class, or ROW,COLUMN"),
        (["attention", "{images}", "--blocks", "2"], "blocks 0 to 1"),
        (["positions", "--run", "/nowhere"], "--run /nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(command, message, tmp_path, capsys) -> None:
    checkpoint, images = write_checkpoint(tmp_path, "coordinate"), write_images(tmp_path / "images", 1)
    name, *rest = [word.format(images=images) for word in command]
    first = rest[:1] if name != "positions" else []
    options = rest[1:] if name != "positions" else rest
    assert main([name, str(checkpoint), *first, *options, "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


# In training ----------------------------------------------------------------------------------------------------------

STATES: list[dict] = []


@HOOKS.register_module()
class RecordRandomState(Hook):
    priority = "LOWEST"

    def after_train_epoch(self, runner) -> None:
        STATES.append(random_state())


def train(folder: Path, images: Path, name: str, kind: str, hook: str) -> dict[str, torch.Tensor]:
    """Two epochs; returns the parameters."""
    position, adversary = KINDS[kind]
    config = folder / f"{name}.py"
    config.write_text(f"""
_base_ = [{str(ROOT / "configs" / "_base_" / "runtime.py")!r}]
custom_imports = dict(imports=["adpe.engine", "adpe.engine.hooks.visualization"], allow_failed_imports=False)
model = dict(type="AdPEPretraining", model="adpe_vit_tiny_patch4", position={position!r}, adversary={adversary!r},
    **{OPTIONS!r})
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"), dataset=dict(type="AdPEImageDataset", source={str(images)!r},
    crops=dict(size=16, num_crops=2, normalize="device")))
optim_wrapper = dict(type="OptimWrapper", constructor="AdversarialOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-2))
train_cfg = dict(by_epoch=True, max_epochs=2)
custom_hooks = [dict(type="AdPEEpochHook"), {hook} dict(type="RecordRandomState")]
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")], name={name!r})
record = dict(method="AdPE", task="pretrain", dataset="noise", start="random")
""")
    assert train_main([str(config), "--work-dir", str(folder / name)]) == 0
    return torch.load(folder / name / "epoch_2.pth", weights_only=True)["state_dict"]


@pytest.mark.parametrize("kind", ["coordinate", "relative_coordinate"])
def test_training_draws_and_is_not_disturbed(kind, tmp_path) -> None:
    images = write_images(tmp_path / "images", 8)
    STATES.clear()
    plain = train(tmp_path, images, f"plain_{kind}", kind, "")
    drawn = train(tmp_path, images, f"drawn_{kind}", kind,
                  'dict(type="AdPEVisualizationHook", interval=1, num_images=2, scalar_interval=1),')  # fmt: skip
    assert all(torch.equal(plain[name], drawn[name]) for name in plain)
    for before, after in zip(STATES[:2], STATES[2:], strict=True):
        assert (before["python"], before["numpy"]) == (after["python"], after["numpy"])
        assert torch.equal(before["torch"], after["torch"])
    (data,) = (tmp_path / f"drawn_{kind}").glob("*/vis_data")
    names = sorted(path.name for path in (data / "vis_image").iterdir())
    assert names == ["adversary_1.png", "adversary_2.png", "reconstructions_1.png", "reconstructions_2.png"]
    lines = [json.loads(line) for line in (data / "scalars.json").read_text().splitlines()]
    drift = [line for line in lines if any(name.startswith("adversary/") for name in line)]
    assert [line["step"] for line in drift] == [1, 2, 3, 4]
    expected = {name: value for name, value in drift[-1].items() if name != "step"}
    model = adpe.create_model("adpe_vit_tiny_patch4", position=KINDS[kind][0], adversary="coordinate", **OPTIONS)
    checkpoint = tmp_path / f"drawn_{kind}" / "epoch_2.pth"
    adpe.load_checkpoint(model, checkpoint, verbose=False)
    assert adversary_scalars(model.adversary) == pytest.approx(expected)
    assert all(value for value in expected.values())
    # The command line finds the model and the drift of such a run by itself.
    assert main(["positions", str(checkpoint), "--out", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p_drift.png").exists()
