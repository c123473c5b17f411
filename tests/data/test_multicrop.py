"""Multi-crop: the pixels and distribution of torchvision's transforms, random by (seed, epoch, index) alone."""

from __future__ import annotations

import random
import uuid

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from scipy.stats import ks_2samp
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow_functional
from torchvision.transforms.v2 import functional as tensor_functional

from adpe.data.dataset import AdPEImageDataset
from adpe.data.views.multicrop import IMAGENET_MEAN, IMAGENET_STD, MultiCrop, crop_generator, normalize_crops
from adpe.engine.mmengine_internals import end_workers
from adpe.errors import UserError


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Noise at several scales with saturated areas, 301 x 240."""
    generator = np.random.default_rng(0)
    pixels = np.zeros((240, 301, 3))
    for cells in (5, 30, 240):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize((301, 240), Image.Resampling.NEAREST), dtype=float) - 128
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(1)
    for i in range(10):
        (tmp_path / "abc"[i % 3]).mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "abc"[i % 3] / f"{i}.png")
    return tmp_path


def boxes_of(crop: MultiCrop, image: Image.Image, samples: int = 10) -> list:
    boxes = [box for i in range(samples) for box in crop.sample(image.height, image.width, crop_generator(0, 0, i))]
    assert {box[4] for box in boxes} == {True, False}
    return boxes


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 112])
def test_pillow_resize_equals_torchvision_on_pillow_images(image, interpolation, size):
    crop = MultiCrop(size=size, interpolation=interpolation, resize="pillow")
    boxes = boxes_of(crop, image)
    result = crop.apply(image, boxes)
    assert (result.shape, result.dtype, result.is_contiguous()) == ((40, 3, size, size), torch.float32, True)
    for (*box, flipped), view in zip(boxes, result, strict=True):
        expected = pillow_functional.resized_crop(image, *box, [size, size], InterpolationMode(interpolation))
        expected = pillow_functional.hflip(expected) if flipped else expected
        expected = pillow_functional.normalize(pillow_functional.to_tensor(expected), IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 112])
def test_torch_resize_equals_torchvision_on_tensors(image, interpolation, size):
    crop = MultiCrop(size=size, interpolation=interpolation)
    boxes = boxes_of(crop, image)
    levels = MultiCrop(size=size, interpolation=interpolation, normalize="device").apply(image, boxes)
    assert (levels.shape, levels.dtype, levels.is_contiguous()) == ((40, 3, size, size), torch.uint8, True)
    tensor = tensor_functional.pil_to_tensor(image)
    for (*box, flipped), view in zip(boxes, levels, strict=True):
        expected = tensor_functional.resized_crop(tensor, *box, [size, size], InterpolationMode(interpolation), True)
        torch.testing.assert_close(view, expected.flip(-1) if flipped else expected, rtol=0, atol=0)
    expected = tensor_functional.normalize(levels / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(crop.apply(image, boxes), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_torch_resize_is_pillows_to_one_level(image, interpolation):
    crop = MultiCrop(interpolation=interpolation, hflip=0, normalize="device")
    boxes = [box for i in range(10) for box in crop.sample(image.height, image.width, crop_generator(0, 0, i))]
    filtered = Image.Resampling[interpolation.upper()]
    for (top, left, h, w, _), view in zip(boxes, crop.apply(image, boxes), strict=True):
        # Rows first by two calls: in a single one, some versions of Pillow choose the order by cost.
        rows = image.crop((left, top, left + w, top + h)).resize((112, h), filtered)
        difference = (tensor_functional.pil_to_tensor(rows.resize((112, 112), filtered)).int() - view.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.1


def test_normalization_of_every_level():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    expected = tensor_functional.normalize(levels / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(normalize_crops(levels), expected, rtol=0, atol=1e-6)
    exact = (levels.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).double()[:, None, None]) / 0.25
    result = normalize_crops(levels.expand(2, 5, 3, 16, 16), (0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
    assert (result.shape, result.dtype) == ((2, 5, 3, 16, 16), torch.float32)
    torch.testing.assert_close(result[1, 4], exact.float(), rtol=0, atol=1e-6)


def test_normalizing_on_the_device_is_the_same(image):
    boxes = boxes_of(MultiCrop(), image)
    crops = MultiCrop(normalize="device").apply(image, boxes)
    before = crops.clone()
    assert torch.equal(normalize_crops(crops), MultiCrop().apply(image, boxes))
    assert torch.equal(crops, before)


@pytest.mark.parametrize(("width", "height"), [(300, 240), (500, 150), (32, 32), (90, 700)])
def test_distribution_is_torchvisions(width, height):
    torch.manual_seed(0)
    crop = MultiCrop(num_crops=4)
    ours = [box for i in range(1250) for box in crop.sample(height, width, crop_generator(0, 0, i))]
    canvas = torch.empty(3, height, width, device="meta")
    theirs = [transforms.RandomResizedCrop.get_params(canvas, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(5000)]
    top, left, h, w, flipped = np.array(ours).T
    their_top, their_left, their_h, their_w = np.array(theirs).T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    for ours, theirs in (
        (h * w, their_h * their_w),
        (w / h, their_w / their_h),
        (top, their_top),
        (left, their_left),
        ((top + 0.5) / (height - h + 1), (their_top + 0.5) / (height - their_h + 1)),
        ((left + 0.5) / (width - w + 1), (their_left + 0.5) / (width - their_w + 1)),
    ):
        assert ks_2samp(ours, theirs).pvalue > 1e-3
    assert flipped.mean() == pytest.approx(0.5, abs=4 * 0.5 / 5000**0.5)


def test_distribution_of_other_ranges():
    crop = MultiCrop(num_crops=4, scale=(0.3, 0.5), ratio=(1.0, 2.0), hflip=0.2)
    boxes = np.array([box for i in range(1000) for box in crop.sample(400, 900, crop_generator(3, 0, i))])
    area, log_ratio = boxes[:, 2] * boxes[:, 3] / (400 * 900), np.log(boxes[:, 3] / boxes[:, 2])
    assert 0.295 < area.min() < 0.31 and 0.49 < area.max() < 0.505
    assert area.mean() == pytest.approx(0.4, abs=0.004)  # four standard errors
    assert log_ratio.mean() == pytest.approx(np.log(2) / 2, abs=0.013)
    assert log_ratio.std() == pytest.approx(np.log(2) / 12**0.5, abs=0.01)
    assert boxes[:, 4].mean() == pytest.approx(0.2, abs=0.026)


@pytest.mark.parametrize(("width", "height"), [(1000, 3), (3, 1000), (1, 1), (1, 500)])
def test_central_crop_where_no_attempt_fits(width, height):
    canvas = torch.empty(3, height, width, device="meta")
    crop = MultiCrop(num_crops=1, scale=(1.0, 1.0), hflip=0)
    expected = transforms.RandomResizedCrop.get_params(canvas, [1.0, 1.0], [3 / 4, 4 / 3])
    assert crop.sample(height, width, crop_generator(0, 0, 0)) == [(*expected, False)]
    assert crop(Image.new("L", (width, height), 255), crop_generator(0, 0, 0)).shape == (1, 3, 112, 112)


def test_crops_of_one_image_differ_and_white_is_white(image):
    crops = MultiCrop()(image, crop_generator(0, 0, 0))
    assert all(not torch.equal(crops[i], crops[j]) for i in range(4) for j in range(i))
    white = MultiCrop(size=8, num_crops=2)(Image.new("RGB", (50, 40), "white"), crop_generator(0, 0, 0))
    expected = torch.tensor([(1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    torch.testing.assert_close(white, expected[:, None, None].expand(2, 3, 8, 8), rtol=0, atol=1e-6)


def test_generator_is_a_function_of_seed_epoch_index():
    first = {key: crop_generator(*key).random() for key in np.ndindex(4, 5, 50)}
    assert len(set(first.values())) == 1000
    assert crop_generator(2, 3, 4).random() == first[2, 3, 4]
    # A resumed run must draw what the interrupted one would have drawn, also with another version of Python.
    assert crop_generator(1, 2, 3).random() == 0.6752046923448195
    boxes = MultiCrop(num_crops=2).sample(240, 300, crop_generator(1, 2, 3))
    assert boxes == [(0, 59, 240, 210, True), (84, 127, 145, 164, True)]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"size": 0}, "size=0, expected a positive number of pixels"),
        ({"num_crops": 1.5}, "num_crops=1.5, expected"),
        ({"scale": (1.0, 0.08)}, r"scale=\(1.0, 0.08\), expected"),
        ({"ratio": (0, 1)}, r"ratio=\(0, 1\), expected"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos', expected 'bicubic' or 'bilinear'"),
        ({"hflip": 2}, "hflip=2, expected a probability"),
        ({"mean": (0.5,)}, "mean=.*, expected three numbers"),
        ({"std": (0, 1, 1)}, "std=.*, expected three positive numbers"),
        ({"normalize": "gpu"}, "normalize='gpu', expected 'cpu' or 'device'"),
        ({"resize": "cv2"}, "resize='cv2', expected 'torch' or 'pillow'"),
    ],
)
def test_mistakes(folder, option, words):
    with pytest.raises(UserError, match=f"crops: {words}"):
        AdPEImageDataset(folder, crops=option)


def test_dataset_sample_and_batch(folder):
    dataset = AdPEImageDataset(str(folder), crops={"size": 16, "num_crops": 3}, seed=5)
    assert dataset.metainfo == {"classes": ("a", "b", "c")}
    sample = dataset[7]
    assert sample["data_samples"] == {"img_path": str(folder / "c" / "2.png"), "index": 7, "label": 2}
    picture = Image.open(folder / "c" / "2.png")
    torch.testing.assert_close(
        sample["inputs"], MultiCrop(size=16, num_crops=3)(picture, crop_generator(5, 0, 7)), rtol=0, atol=0
    )
    batch = default_collate([dataset[7], dataset[0]])
    assert (batch["inputs"].shape, batch["inputs"].dtype) == ((2, 3, 3, 16, 16), torch.float32)
    assert torch.equal(batch["inputs"][0], sample["inputs"])
    assert batch["data_samples"]["img_path"] == [str(folder / "c" / "2.png"), str(folder / "a" / "0.png")]
    assert batch["data_samples"]["index"].tolist() == [7, 0]
    assert batch["data_samples"]["label"].tolist() == [2, 0]


def test_corrupt_image_is_replaced_and_named(folder):
    (folder / "a" / "3.png").write_bytes(b"")
    dataset = AdPEImageDataset(folder, crops={"size": 8})
    assert dataset[1]["data_samples"] == {"img_path": str(folder / "a" / "6.png"), "index": 2, "label": 0}
    assert not torch.equal(dataset[1]["inputs"], dataset[2]["inputs"])  # the crops are still those of sample 1
    with pytest.raises(UserError, match=r"a/3\.png"):
        AdPEImageDataset(folder, on_corrupt="error")[1]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_crops_do_not_depend_on_workers_order_or_global_state(folder, context):
    dataset = AdPEImageDataset(folder, crops={"size": 8}, seed=1)
    options = {"batch_size": 3, "collate_fn": default_collate}
    workers = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": context}
    loader = DataLoader(dataset, shuffle=True, generator=torch.Generator().manual_seed(0), **options, **workers)
    seen = {}
    for epoch in (0, 1, 5):  # persistent workers see the epoch change
        dataset.set_epoch(epoch)
        for batch in loader:
            for index, inputs in zip(batch["data_samples"]["index"].tolist(), batch["inputs"], strict=True):
                seen[epoch, index] = inputs
    assert len(seen) == 30
    other = AdPEImageDataset(folder, crops={"size": 8}, seed=1)
    torch.manual_seed(99)
    random.seed(99)
    for epoch in (5, 1, 0):
        other.set_epoch(epoch)
        for index in reversed(range(10)):
            assert torch.equal(other[index]["inputs"], seen[epoch, index])
    assert not torch.equal(seen[0, 4], seen[1, 4])
    assert not torch.equal(seen[0, 4], AdPEImageDataset(folder, crops={"size": 8}, seed=2)[4]["inputs"])


class TinyModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], torch.Tensor]] = []

    def forward(self, inputs, data_samples, mode):
        self.seen.append((data_samples["index"].tolist(), inputs.clone()))
        return {"loss": self.weight * inputs.mean()}


class Stop(Hook):
    def after_train_epoch(self, runner):
        if runner.epoch == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 2])
def test_runner_resumes_with_the_same_crops(folder, tmp_path_factory, workers):
    cfg = {"type": "AdPEImageDataset", "source": str(folder), "crops": {"size": 8}}

    def run(work_dir, resume, stop=False, dataset=cfg, **changes) -> list:
        runner = Runner(
            model=TinyModel(),
            work_dir=str(work_dir),
            train_dataloader={
                "dataset": dataset,
                "sampler": {"type": "DefaultSampler", "shuffle": True, "seed": 3},
                "batch_size": 5,
                "num_workers": workers,
                "persistent_workers": workers > 0,
                "collate_fn": {"type": "default_collate"},
            },
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
            custom_hooks=[{"type": "AdPEEpochHook"}, *([{"type": Stop, "priority": "LOWEST"}] if stop else [])],
            resume=resume,
            experiment_name=uuid.uuid4().hex,
            log_level="ERROR",
            **{"train_cfg": {"by_epoch": True, "max_epochs": 3}, **changes},
        )
        try:
            runner.train()
        except KeyboardInterrupt:
            assert stop
        end_workers(runner.train_dataloader)
        return runner.model.seen

    whole = run(tmp_path_factory.mktemp("whole"), False)
    images = AdPEImageDataset(folder, crops={"size": 8})
    assert len(whole) == 6
    for batch, (indices, inputs) in enumerate(whole):
        images.set_epoch(batch // 2)
        assert torch.equal(inputs, torch.stack([images[index]["inputs"] for index in indices]))
    interrupted = tmp_path_factory.mktemp("interrupted")
    begin = run(interrupted, False, stop=True)
    rest = run(interrupted, True)
    assert (len(begin), len(rest)) == (2, 4)
    for (indices, inputs), (expected_indices, expected_inputs) in zip(begin + rest, whole, strict=True):
        assert indices == expected_indices
        assert torch.equal(inputs, expected_inputs)
    if workers == 0:
        with pytest.raises(UserError, match=r"IterBasedTrainLoop does not count epochs.*by_epoch=True"):
            run(interrupted, False, train_cfg={"by_epoch": False, "max_iters": 2})
        with pytest.raises(UserError, match="Subset has no set_epoch; expected AdPEImageDataset"):
            run(interrupted, False, dataset=Subset(AdPEImageDataset(folder), range(4)))
