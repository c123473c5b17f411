"""Deployed encoders: traced, exported and in ONNX, with another number of images than they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import adpe

POSITIONS = ("absolute", "relative", "relative_interpolated")


def encoder(position: str) -> adpe.VisionTransformer:
    torch.manual_seed(0)
    model = adpe.create_encoder(
        "adpe_vit_tiny_patch8", embed_dim=32, depth=2, num_heads=2, img_size=48, position=position
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("position", POSITIONS)
def test_a_traced_encoder_takes_any_number_of_images(position: str):
    model = encoder(position)
    traced = torch.jit.trace(model, torch.randn(1, 3, 48, 48), check_trace=False)
    images = torch.randn(3, 3, 48, 48)
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_an_exported_encoder_takes_any_number_of_images(position: str):
    model, free = encoder(position), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 48, 48),), dynamic_shapes={"images": {0: free}})
    assert not [node for node in program.graph.nodes if node.target in (torch.ops.aten.sin.default,)]
    images = torch.randn(5, 3, 48, 48)
    torch.testing.assert_close(program.module()(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_onnx_gives_the_same_features(position: str, tmp_path: Path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, free = encoder(position), torch.export.Dim("batch", min=1, max=64)
    path = str(tmp_path / "encoder.onnx")
    shapes = {"images": {0: free}}
    torch.onnx.export(model, (torch.randn(2, 3, 48, 48),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path)
    images = torch.randn(3, 3, 48, 48)
    (features,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(features), model(images).detach(), rtol=0, atol=1e-4)
