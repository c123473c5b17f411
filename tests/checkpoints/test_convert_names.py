"""Names of the frameworks, there and back again bit by bit."""

from __future__ import annotations

import pytest
import timm
import torch
from checkpoint_cases import TINY, autoencoder, encoder, randomized, same

from adpe.checkpoints.names import from_our_names, to_our_names
from adpe.errors import UserError

MMSEG = {"img_size": 32, "patch_size": 4, "embed_dims": 32, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize("framework", ["timm", "mae", "mmseg", "mmpretrain", "detectron2"])
def test_our_encoder_there_and_back(framework) -> None:
    ours = {f"encoder.{name}": tensor for name, tensor in encoder(1).state_dict().items()}
    theirs, _ = from_our_names(ours, framework, img_size=32)
    back = to_our_names(theirs)
    table = back.pop("encoder.pos_embed")
    assert torch.equal(table, encoder().position_table((8, 8), torch.zeros(1)))
    scales = [name for name in back if ".ls" in name]
    assert len(scales) == (4 if framework == "mmseg" else 0)
    assert all(bool((back.pop(name) == 1).all()) for name in scales)
    assert same(back, ours)


@pytest.mark.parametrize(
    ("name", "framework"),
    [("vit_tiny_patch16_224", "timm"), ("beit_base_patch16_224", "timm"), ("MAE", "mmseg"), ("BEiT", "mmseg")],
)
def test_their_models_there_and_back(name, framework) -> None:
    if framework == "timm":
        theirs = randomized(timm.create_model(name, num_classes=0, **TINY))
    else:
        backbones = pytest.importorskip("mmseg.models.backbones")
        theirs = randomized(getattr(backbones, name)(**MMSEG, final_norm=True))
    state = {key: tensor for key, tensor in theirs.state_dict().items() if not key.endswith("relative_position_index")}
    back, left_out = from_our_names(to_our_names(state), framework)
    assert left_out == {}
    assert same(back, state)


@pytest.mark.parametrize("framework", ["timm", "mmseg", "mmpretrain", "detectron2"])
def test_a_pretrained_autoencoder_gives_its_encoder(framework) -> None:
    state = autoencoder(1, adversary="coordinate").state_dict()
    theirs, left_out = from_our_names(state, framework, img_size=32)
    rest = {name for name in state if not name.startswith("encoder.")}
    assert set(left_out) == rest and len(rest) == 20
    assert len(theirs) == 30 + (4 if framework == "mmseg" else 0)


def test_what_a_framework_cannot_compute_is_refused() -> None:
    state = autoencoder(1, "relative").state_dict()
    with pytest.raises(UserError, match=r"model\.pth has the relative positions of AdPE .*which timm does not know"):
        from_our_names(state, "timm", source="model.pth")
    assert same(from_our_names(state, "adpe")[0], state)
    with pytest.raises(UserError, match="Unknown framework 'keras'"):
        from_our_names(state, "keras")
    with pytest.raises(UserError, match="img_size=30 is not divisible by the patch size 4"):
        from_our_names(autoencoder(1).state_dict(), "timm", img_size=30)
