"""Images decoded once and cropped in batch, here or on the device: the ordinary samples in every bit."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from adpe.data.dataset import AdPEImageDataset
from adpe.data.sources.decoded import DecodedSource
from adpe.data.sources.images import ImageSource
from adpe.data.sources.pixels import CorruptImageError
from adpe.data.views.batch_crops import crop_batch
from adpe.data.views.device_crops import crop_on_device, resize_weights, weights_of
from adpe.data.views.multicrop import MultiCrop, crop_generator
from adpe.engine.pretraining import AdPECropsPreprocessor
from adpe.engine.resuming.reproducible import AdPESeededDataset
from adpe.errors import UserError

CROPS = {"size": 24, "num_crops": 3, "scale": (0.2, 1.0), "normalize": "device"}
BLURRED = {**CROPS, "color": {"jitter_p": 1.0}}
GROUPS = [CROPS, {**CROPS, "size": 16, "num_crops": 2, "interpolation": "bilinear"}]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten images of 32 x 32, PNG and JPEG in turn, in two folders."""
    generator = np.random.default_rng(1)
    for i in range(10):
        (tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "ab"[i % 2] / f"{i}.{('png', 'jpg')[i // 2 % 2]}")
    return tmp_path / "data"


def saturated(count: int, height: int, width: int) -> np.ndarray:
    """Noise, every other image of black and white alone, which overshoots most."""
    images = np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[::2] = (images[::2] > 127) * np.uint8(255)
    return images


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 24), (32, 32, 32), (24, 50, 40), (60, 41, 16), (150, 130, 112)]
)
def test_crops_of_a_batch_are_those_of_each_image(height, width, size, interpolation):
    images = saturated(6, height, width)
    crops = MultiCrop(size=size, num_crops=5, scale=(0.02, 1.0), interpolation=interpolation, normalize="device")
    boxes = [crops.sample(height, width, crop_generator(0, 0, index)) for index in range(6)]
    expected = torch.stack(
        [crops.apply(Image.fromarray(image), mine) for image, mine in zip(images, boxes, strict=True)]
    )
    made = crop_batch(images, np.array(boxes), size, interpolation)
    assert (made.dtype, made.shape, made.is_contiguous()) == (torch.uint8, (6, 5, 3, size, size), True)
    assert torch.equal(made, expected)
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        handed, where = torch.from_numpy(images).to(device), torch.tensor(boxes, device=device)
        (moved,) = crop_on_device(handed, [where], [(size, interpolation)])
        assert (moved.dtype, moved.shape, moved.is_contiguous()) == (torch.uint8, (6, 5, 3, size, size), True)
        assert torch.equal(moved.cpu(), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_weights_are_torchs_for_every_length(interpolation):
    weights = weights_of(160, 24, interpolation, torch.device("cpu"))
    lines = torch.from_numpy(saturated(1, 8, 160)).permute(0, 3, 1, 2)
    for length in range(1, 161):
        resized = interpolate(lines[..., :length].double(), (8, 24), mode=interpolation, antialias=True)
        by_hand = lines[..., :length].double() @ torch.from_numpy(resize_weights(length, 24, interpolation)).T
        torch.testing.assert_close(by_hand, resized, rtol=0, atol=1e-9)
        fixed = weights.values[length].double() / 2.0 ** int(weights.bits[length])
        assert fixed[:, length:].abs().sum() == 0
        torch.testing.assert_close(fixed.sum(1), torch.ones(24).double(), rtol=0, atol=length * 2.0**-14)


def test_sums_that_float32_does_not_hold_are_made_in_float64():
    assert weights_of(32, 24, "bicubic", torch.device("cpu")).values.dtype == torch.float32
    weights = weights_of(96, 24, "bicubic", torch.device("cpu"))
    assert weights.values.dtype == torch.float64
    assert weights.values.abs().sum(2).max() * 255 > 2**24


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crops": GROUPS},
        {"crops": BLURRED},
        {"labels": True},
        {"crops": {**CROPS, "normalize": "cpu"}},
        {"crops": {**CROPS, "resize": "pillow"}},
    ],
)
def test_samples_are_those_without_a_cache(folder, tmp_path, options):
    options = {"crops": CROPS, "seed": 3, **options}
    plain = AdPEImageDataset(folder, **options)
    cached = AdPEImageDataset(folder, cache=True, cache_dir=tmp_path / "cache", **options)
    for dataset in (plain, cached):
        dataset.set_epoch(4)
    order = [7, 0, 3, 9, 9]
    expected = default_collate([plain[index] for index in order])
    for batch in (default_collate([cached[index] for index in order]), default_collate(cached.__getitems__(order))):
        assert all(map(torch.equal, groups(batch), groups(expected)))
        assert batch["data_samples"]["img_path"] == expected["data_samples"]["img_path"]
        assert batch["data_samples"]["label"].tolist() == expected["data_samples"]["label"].tolist()


def groups(batch) -> list[torch.Tensor]:
    return batch["inputs"] if isinstance(batch["inputs"], list) else [batch["inputs"]]


@pytest.mark.parametrize("crops", [CROPS, GROUPS])
@pytest.mark.parametrize("cache", [True, False])
def test_the_device_crops_a_batch_equally(folder, tmp_path, crops, cache):
    Image.fromarray(saturated(1, 20, 45)[0]).save(folder / "a" / "0.png")  # of another size: padded
    options = {"crops": crops, "seed": 3}
    batch = default_collate([AdPEImageDataset(folder, **options)[index] for index in range(10)])
    sizes = [{key: group[key] for key in ("size", "interpolation")} for group in (GROUPS[1], GROUPS[1])]
    sizes[0] = {"size": 24, "interpolation": "bicubic"}
    preprocessor = AdPECropsPreprocessor(crops=sizes[: len(groups(batch))])
    dataset = AdPEImageDataset(folder, cache=cache, cache_dir=tmp_path / "cache", crop_on="device", **options)
    handed = default_collate(dataset.__getitems__(range(10)))
    assert handed["inputs"]["images"].shape == (10, 32, 45, 3)
    with torch.autocast("cpu", torch.bfloat16):
        made = preprocessor(handed)["inputs"]
    assert all(map(torch.equal, made, AdPECropsPreprocessor()(batch)["inputs"]))
    # A single sample is cropped where it is read.
    assert all(map(torch.equal, groups(default_collate([dataset[4]])), (group[4:5] for group in groups(batch))))
    large = AdPEImageDataset(folder, crop_on="device", **options)
    Image.fromarray(saturated(1, 20, 257)[0]).save(folder / "a" / "0.png")
    assert isinstance(large.__getitems__([0])[0]["inputs"], (torch.Tensor, list))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_workers_or_global_state(folder, tmp_path, workers):
    expected = AdPESeededDataset(AdPEImageDataset(folder, crops=CROPS, seed=1), seed=8)
    cached = AdPESeededDataset(
        AdPEImageDataset(folder, crops=CROPS, seed=1, cache=True, cache_dir=tmp_path / "cache"), seed=8
    )
    later = list(range(10, 20))  # the second pass
    state = torch.get_rng_state()
    loader = DataLoader(cached, batch_sampler=[later[:4], later[4:]], num_workers=workers, collate_fn=default_collate)
    for indices, batch in zip((later[:4], later[4:]), loader, strict=True):
        assert torch.equal(batch["inputs"], torch.stack([expected[index]["inputs"] for index in indices]))
    # The loader itself draws a seed for its workers.
    torch.set_rng_state(state)
    cached.__getitems__(later)
    assert torch.equal(torch.get_rng_state(), state)


def test_data_sets_without_batches_of_their_own_are_asked_item_by_item():
    class Drawn(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(()).item()

        def __getitems__(self, indices):
            raise AssertionError("draws from the generators of all items")

    seeded = AdPESeededDataset(Drawn(), seed=0)
    assert seeded.__getitems__([0, 5, 2]) == [seeded[0], seeded[5], seeded[2]]
    assert len({seeded[0], seeded[4], seeded[1]}) == 3


def test_cache_is_made_once_for_the_same_images_wherever_they_are(folder, tmp_path, monkeypatch):
    source, cache = ImageSource(folder), tmp_path / "cache"
    decoded = DecodedSource(folder, cache_dir=cache)
    assert sorted(path.suffix for path in cache.rglob("*") if path.is_file()) == [".lock", ".npy", ".pixels"]
    assert decoded.file.stat().st_size == 10 * 32 * 32 * 3
    for index in range(10):
        assert np.array_equal(np.asarray(decoded.load(index)[0]), np.asarray(source.load(index)[0]))
        assert (decoded.path(index), decoded.label(index)) == (source.path(index), source.label(index))
    copy = pickle.loads(pickle.dumps(decoded))
    assert np.array_equal(copy.decode_pixels(3)[0], decoded.decode_pixels(3)[0])
    assert len(pickle.dumps(decoded)) < 10_000  # the pixels stay in the file
    with pytest.raises(ValueError, match="read-only"):
        decoded.decode_pixels(0)[0][:] = 0
    written = decoded.file.stat().st_mtime_ns
    shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copy2)
    moved = DecodedSource(tmp_path / "moved", cache_dir=cache)
    assert (moved.file, moved.file.stat().st_mtime_ns) == (decoded.file, written)
    other = Image.fromarray(saturated(1, 32, 32)[0])
    changes = {
        "name": lambda: (folder / "a" / "0.png").rename(folder / "a" / "00.png"),
        "time": lambda: os.utime(folder / "a" / "00.png", ns=(0, 0)),
        "contents": lambda: other.save(folder / "a" / "00.png"),
        "split": lambda: None,
        "decoder": lambda: monkeypatch.setattr("adpe.data.sources.decoded.version", lambda name: "0.0"),
    }
    files = {decoded.file}
    for name, change in changes.items():
        change()
        files.add(DecodedSource(folder, split="a" if name == "split" else None, cache_dir=cache).file)
    assert len(files) == 6
    assert np.array_equal(DecodedSource(folder, cache_dir=cache).decode_pixels(0)[0], np.asarray(other))


def test_archives_are_decoded_as_folders(folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", folder)
    decoded, source = DecodedSource(archive, cache_dir=tmp_path / "cache"), ImageSource(folder)
    assert all(np.array_equal(decoded.decode_pixels(i)[0], np.asarray(source.decode(i))) for i in range(10))


def test_several_processes_decode_once(folder, tmp_path, caplog):
    caplog.set_level("INFO", "adpe")
    with ThreadPoolExecutor(3) as pool:  # each opens the lock's file for itself, as processes do
        files = {made.file for made in pool.map(lambda _: DecodedSource(folder, cache_dir=tmp_path), range(3))}
    assert len(files) == 1
    assert sum("decoding 10 images" in record.message for record in caplog.records) == 1


def test_unreadable_images_are_skipped_or_named_as_without_a_cache(folder, tmp_path):
    (folder / "b" / "1.png").write_bytes(b"")
    options = {"crops": CROPS, "cache_dir": tmp_path / "cache"}
    cached, plain = (AdPEImageDataset(folder, cache=cache, **options) for cache in (True, False))
    one, other = cached.__getitems__([5, 6]), [plain[5], plain[6]]
    assert [sample["data_samples"] for sample in one] == [sample["data_samples"] for sample in other]
    assert one[0]["data_samples"]["index"] == 6
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(one, other, strict=True))
    strict = AdPEImageDataset(folder, cache=True, on_corrupt="error", **options)
    with pytest.raises(CorruptImageError, match=r"b/1\.png"):
        strict.__getitems__([4, 5])


def test_truncated_and_unwritable_caches_are_refused(folder, tmp_path):
    made = DecodedSource(folder, cache_dir=tmp_path / "cache")
    sizes = made.file.with_name(f"{made.file.stem}.sizes.npy")
    pixels, table = made.file.read_bytes(), sizes.read_bytes()
    made.file.write_bytes(pixels[:-1])
    with pytest.raises(UserError, match=rf"{made.file.name} has 30719 bytes, expected 30720.*{sizes.name}"):
        DecodedSource(folder, cache_dir=tmp_path / "cache")
    made.file.unlink()
    with pytest.raises(UserError, match=rf"{made.file.name} has 0 bytes"):
        DecodedSource(folder, cache_dir=tmp_path / "cache")
    made.file.write_bytes(pixels)
    for damage in (table[:-4], b"", table[:20]):
        sizes.write_bytes(damage)
        with pytest.raises(UserError, match=sizes.name):
            DecodedSource(folder, cache_dir=tmp_path / "cache")
    np.save(sizes, np.zeros((9, 2), np.int32))
    with pytest.raises(UserError, match=r"shape \(9, 2\), expected int32 of \(10, 2\)"):
        DecodedSource(folder, cache_dir=tmp_path / "cache")
    sizes.unlink()  # an interrupted writing: the table comes last
    assert DecodedSource(folder, cache_dir=tmp_path / "cache").file.read_bytes() == pixels
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot decode .*file.decoded.*ADPE_CACHE_DIR.*cache=False"):
        DecodedSource(folder, cache_dir=tmp_path / "file")
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize(
    "options",
    [
        {"crops": {**CROPS, "normalize": "cpu"}},
        {"crops": BLURRED},
        {"labels": True},
        {"crops": {**CROPS, "resize": "pillow"}},
        {"crop_on": "gpu"},
    ],
)
def test_what_the_device_cannot_crop_is_refused(folder, options):
    with pytest.raises(UserError, match="crop_on="):
        AdPEImageDataset(folder, **{"crops": CROPS, "crop_on": "device", **options})
