"""Every link learns: a few steps reach a bar that random and scrambled features miss.

Shapes, finite numbers and falling losses do not show that a head sees features where the encoder put them, and two
pictures can be learned by heart from features in any fixed order. Here a model is judged on pictures that it was not
trained on: those of training with another column of patches, or new ones. Each test trains the same model twice, as it
is and with its maps scrambled on purpose; only the first may reach the bar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from sklearn.datasets import load_digits
from test_backbone_swap import SEGMENTATION, SIZE, batch, build, detector, segmentor

import adpe
from adpe.evaluations.classification import AdPEClassifier
from adpe.evaluations.knn import knn_votes

pytestmark = pytest.mark.slow(8)
COLUMN = 8  # pixels of a patch

# timm's models under mmdet's FPN: options and channels.
PYRAMIDS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}, [16, 24, 32, 48]),
    "resnet10t": ({"out_indices": (1, 2, 3, 4), "channels": (16, 32, 48, 64)}, [16, 32, 48, 64]),
}


def scrambled(maps: Any, kind: str) -> Any:
    """Maps (B, C, H, W) or tokens (B, N, D), or a tuple of them, in wrong places.

    Args:
        kind: "memory" reads the memory of channels-last maps as channels-first, as mmcv's RoIAlign did; "images" gives
            every image the features of another, anew in every pass.
    """
    if isinstance(maps, (list, tuple)):
        return tuple(scrambled(one, kind) for one in maps)
    return maps.movedim(1, -1).reshape(maps.shape) if kind == "memory" else maps[torch.randperm(len(maps))]


def scramble(module: nn.Module, kind: str | None) -> None:
    """Scramble what the module gives, if there is a kind."""
    if kind:
        module.register_forward_hook(lambda module, inputs, output: scrambled(output, kind))


def fit(model: nn.Module, loss: Callable[[], Tensor], count: int, lr: float) -> None:
    """AdamW with five steps of warm-up and a linear descent to zero in the second half."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 5, 2 * (count - step) / count)
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()


def transfer_loss(model: Any, data: dict[str, list]) -> Tensor:
    return model.parse_losses(model(**model.data_preprocessor(data, training=True), mode="loss"))[0]


def miou(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the labels."""
    pairs = [(predicted == label, labels == label) for label in labels.unique()]
    return float(np.mean([float((one & other).sum() / (one | other).sum()) for one, other in pairs]))


def found(model: Any, data: dict[str, list], column: int = 0) -> float:
    """Mean over the objects of the IoU with the nearest of an image's best boxes, as many as objects, of their class.

    Args:
        column: pixels added to the right of every image.
    """
    truths = [sample.gt_instances.clone() for sample in data["data_samples"]]
    data = model.data_preprocessor(data, False)
    with torch.no_grad():
        predictions = model(F.pad(data["inputs"], (0, column)), data["data_samples"], mode="predict")
    ious = []
    for sample, truth in zip(predictions, truths, strict=True):
        best = sample.pred_instances
        best = best[best.scores.argsort(descending=True)][: len(truth)]
        overlaps = bbox_overlaps(truth.bboxes, best.bboxes) * (truth.labels[:, None] == best.labels)
        ious += overlaps.max(1).values.tolist() if len(best) else [0.0] * len(truth)
    return float(np.mean(ious))


def model_of(name: str, kind: str | None) -> Any:
    """A model of the frameworks by its name, or Mask R-CNN with timm's model under FPN; its pyramid scrambled."""
    if name in PYRAMIDS:
        cfg, (options, channels) = detector("Mask R-CNN"), PYRAMIDS[name]
        cfg["backbone"] = {"type": "AdPETimmBackbone", "name": name, **options}
        cfg["neck"] = {"type": "FPN", "in_channels": channels, "out_channels": 32, "num_outs": 5}
        model = build("mmdet", cfg)
    elif name in SEGMENTATION:
        model = build("mmseg", segmentor(name))
    else:
        model = build("mmdet", detector(name))
    scramble(model.neck, kind)
    return model


@pytest.mark.parametrize(("name", "count", "lr", "bar"), [
    ("FCOS", 50, 4e-3, 0.4),
    ("RetinaNet", 80, 2e-3, 0.25),
    ("convnext_atto", 40, 3e-3, 0.45),
    ("resnet10t", 40, 3e-3, 0.45),
])  # fmt: skip
def test_detectors_and_pyramids(name: str, count: int, lr: float, bar: float) -> None:
    """On the two scenes of training with another column of patches."""
    reached = {}
    for kind in (None, "memory"):
        model = model_of(name, kind)
        fit(model, lambda model=model: transfer_loss(model, batch("mmdet")), count, lr)
        reached[kind] = found(model, batch("mmdet"), COLUMN)
    assert reached["memory"] < bar <= reached[None], reached


def test_upernet_and_its_auxiliary_head() -> None:
    """On the two scenes of training with two more columns, one of the auxiliary head's map; its own prediction too."""
    labels = torch.stack([sample.gt_sem_seg.data for sample in batch("mmseg")["data_samples"]])[:, 0]
    reached = {}
    for kind in (None, "memory"):
        model = model_of("UperNet", kind)
        fit(model, lambda model=model: transfer_loss(model, batch("mmseg")), 130, 8e-3)
        images = F.pad(model.data_preprocessor(batch("mmseg"), False)["inputs"], (0, 2 * COLUMN))
        with torch.no_grad():
            maps = model.extract_feat(images)
            for head in (model.decode_head, model.auxiliary_head):
                logits = F.interpolate(head(maps), size=images.shape[-2:], mode="bilinear", align_corners=False)
                reached[type(head).__name__, kind] = miou(logits[..., :SIZE].argmax(1), labels)
    assert reached["UPerHead", "memory"] < 0.8 <= reached["UPerHead", None], reached
    assert reached["FCNHead", "memory"] < 0.5 <= reached["FCNHead", None], reached


def rectangles(scope: str, count: int, rng: np.random.Generator) -> dict[str, list]:
    """Noise with a rectangle of one of three colours, its class, in every image."""
    images, samples = [], []
    for index in range(count):
        image = rng.normal(110, 12, (3, SIZE, SIZE))
        width, height = rng.integers(18, 36, 2)
        x, y, label = rng.integers(SIZE - width), rng.integers(SIZE - height), int(rng.integers(3))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y : y + height, x : x + width] = 1
        image[:, mask > 0] -= 70
        image[label, mask > 0] += 180
        images.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)))
        sample = SegDataSample() if scope == "mmseg" else DetDataSample()
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (SIZE, SIZE))
        sample.set_metainfo({**shapes, "scale_factor": (1.0, 1.0), "img_id": index})
        if scope == "mmseg":
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask.astype(np.int64) * (label + 1))[None])
        else:
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32),
                labels=torch.tensor([label]),
                masks=BitmapMasks(mask[None], SIZE, SIZE),
            )
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


@pytest.mark.parametrize(("name", "count", "lr", "bar"), [("DINO", 70, 2e-3, 0.28), ("Mask2Former", 25, 3e-3, 0.6)])
def test_transformer_decoders(name: str, count: int, lr: float, bar: float) -> None:
    """On new pictures: queries know boxes by heart, and find them under another column too."""
    scope = "mmseg" if name in SEGMENTATION else "mmdet"
    reached = {}
    for kind in (None, "memory"):
        model, rng = model_of(name, kind), np.random.default_rng(0)
        fit(model, lambda model=model, rng=rng: transfer_loss(model, rectangles(scope, 4, rng)), count, lr)
        data = rectangles(scope, 16, rng)
        if scope == "mmdet":
            reached[kind] = found(model, data)
        else:
            labels = torch.stack([sample.gt_sem_seg.data for sample in data["data_samples"]])
            with torch.no_grad():
                predictions = model.test_step(data)
            reached[kind] = miou(torch.stack([sample.pred_sem_seg.data for sample in predictions]), labels)
    assert reached["memory"] < bar <= reached[None], reached


def slopes(count: int) -> Tensor:
    """Images (B, 3, 16, 16), each half a slope in a random direction: a hidden patch follows from its own half."""
    y, x = torch.meshgrid(torch.arange(16) / 16, torch.arange(16) / 16, indexing="ij")
    angle = torch.rand(2, count, 1, 1) * 2 * torch.pi
    left, right = angle.cos() * x + angle.sin() * y
    return torch.where(x < 0.5, left, right)[:, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize("options", [{"mask_tokens": "decoder"}, {"adversary": "coordinate"}], ids=["MAE", "AdPE"])
def test_pretraining(options: dict[str, Any]) -> None:
    """A prediction of the mean has a loss of 1; on new images in every step."""
    reached = {}
    for kind in (None, "images"):
        torch.manual_seed(0)
        model = adpe.create_model(
            "adpe_vit_tiny_patch4", img_size=16, embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=32,
            decoder_depth=1, decoder_num_heads=2, **options,
        )  # fmt: skip
        scramble(model.encoder.norm, kind)
        fit(model, lambda model=model: model(slopes(64)), 150, 3e-3)
        with torch.no_grad():
            reached[kind] = float(model(slopes(256)))
    assert reached[None] < 0.5 < 0.8 < reached["images"], reached


def digits() -> tuple[Tensor, Tensor]:
    """Scans of 0, 1 and 2, half of them bright on dark and half dark on bright, noisy: (N, 3, 16, 16) and labels."""
    scans = load_digits(n_class=3)
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (len(scans.images), 1, 1), generator=generator) * 2 - 1
    x = (torch.from_numpy(scans.images).float() / 8 - 1) * sign
    x = F.interpolate(x[:, None].expand(-1, 3, -1, -1), size=16, mode="bilinear")
    return x + 0.5 * torch.randn(x.shape, generator=generator), torch.from_numpy(scans.target)


def test_classification_and_neighbours() -> None:
    """Accuracy on new digits of the classifier, and of the neighbours of what its encoder has learned."""
    (images, new), (labels, wanted) = (part.split(360) for part in digits())
    reached = {}
    for kind in (None, "images"):
        torch.manual_seed(0)
        size = {"img_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4}
        model = AdPEClassifier(model="adpe_vit_tiny_patch4", num_classes=3, **size)

        def neighbours(model: AdPEClassifier = model) -> float:
            model.eval()
            with torch.no_grad():
                bank, test = (F.normalize(model.features(part), dim=1) for part in (images, new))
            return 100 * float((knn_votes(bank, labels, test, 3).argmax(1) == wanted).float().mean())

        if kind is None:
            reached["k-NN", "random"] = neighbours()
        scramble(model.backbone.blocks[-1], kind)

        def loss(model: AdPEClassifier = model) -> Tensor:
            chosen = torch.randint(len(images), (64,))
            return model(images[chosen], {"label": labels[chosen]}, mode="loss")["loss"]

        fit(model, loss, 120, 2e-3)
        with torch.no_grad():
            reached["classifier", kind] = 100 * float((model(new).argmax(1) == wanted).float().mean())
        reached["k-NN", kind] = neighbours()
    assert reached["classifier", "images"] < 70 <= reached["classifier", None], reached
    assert max(reached["k-NN", "images"], reached["k-NN", "random"]) < 70 <= reached["k-NN", None], reached
