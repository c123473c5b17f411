"""One file of every kind of image, with the pixels that every reader has to give, and files that all refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 5, 8
COLOURS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
DEEP = (GREY.astype(np.uint16) << 8) | COLOURS[..., 1]  # 16 bits, of which the upper 8 are GREY
# EXIF 2.32, table 6: what stands in row 0 and column 0 of the stored pixels.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def encode(image: Image.Image | np.ndarray, form: str = "PNG", orientation: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=2)


def kinds() -> dict[str, tuple[bytes, np.ndarray]]:
    """File name -> (file, (H, W, 3) uint8 RGB)."""
    photograph = encode(Image.effect_noise((40, 30), 60).convert("RGB"), "JPEG", quality=90)
    decoded = np.asarray(Image.open(io.BytesIO(photograph)))
    palette = Image.fromarray(COLOURS).quantize(7)
    alpha = Image.fromarray(np.dstack([COLOURS, np.zeros_like(GREY)]))
    two = GREY > 127
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    found = {
        "colour.png": (encode(COLOURS), COLOURS),
        "colour.bmp": (encode(COLOURS, "BMP"), COLOURS),
        "colour.webp": (encode(COLOURS, "WEBP", lossless=True), COLOURS),
        "colour.ppm": (encode(COLOURS, "PPM"), COLOURS),
        "colour.tif": (encode(COLOURS, "TIFF"), COLOURS),
        "photograph.JPG": (photograph, decoded),
        "grey.png": (encode(GREY), grey(GREY)),
        "two.png": (encode(Image.fromarray(two)), grey(two * np.uint8(255))),
        "palette.png": (encode(palette), np.asarray(palette.convert("RGB"))),
        "transparent_palette.png": (encode(palette, transparency=0), np.asarray(palette.convert("RGB"))),
        "alpha.png": (encode(alpha), COLOURS),
        "grey_alpha.png": (encode(Image.merge("LA", [Image.fromarray(GREY)] * 2)), grey(GREY)),
        "cmyk.tif": (encode(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        "deep.png": (encode(DEEP), grey(GREY)),
        "deep.tif": (encode(DEEP, "TIFF"), grey(GREY)),
        "deep.pgm": (encode(DEEP, "PPM"), grey(GREY)),
        "deep_inverted.tif": (tiff(65535 - DEEP, photometric="miniswhite"), grey(GREY)),
        "deep_colour.tif": (tiff(COLOURS.astype(np.uint16) * 256 + 77, photometric="rgb"), COLOURS),
        "float.tif": (encode((GREY / 255).astype(np.float32), "TIFF"), grey(GREY)),
    }
    for orientation, turn in UPRIGHT.items():
        for form, name in (("PNG", "png"), ("TIFF", "tif"), ("WEBP", "webp")):
            options = {"lossless": True} if form == "WEBP" else {}
            found[f"turned{orientation}.{name}"] = (encode(COLOURS, form, orientation, **options), turn(COLOURS))
        jpeg = encode(COLOURS, "JPEG", orientation, quality=95)
        stored = np.asarray(Image.open(io.BytesIO(encode(COLOURS, "JPEG", quality=95))))
        found[f"turned{orientation}.jpg"] = (jpeg, turn(stored))
    return found


def refused() -> dict[str, bytes]:
    """File name -> file."""
    noise = Image.effect_noise((64, 64), 60)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 5\n%%EndComments\nshowpage\n"
    return {
        "empty.png": b"",
        "text.jpg": b"no image",
        "truncated.jpg": encode(noise, "JPEG")[:-200],
        "truncated.png": encode(noise)[:-200],
        "truncated.tif": encode(noise, "TIFF")[:-400],
        "postscript.jpg": postscript,
        "integers.tif": encode(DEEP.astype(np.int32), "TIFF"),
        "signed.tif": tiff((GREY // 2).astype(np.int8)),
        "radiance.tif": encode(GREY.astype(np.float32), "TIFF"),
        "nan.tif": encode(np.full((5, 8), np.nan, np.float32), "TIFF"),
        "thin.png": encode(np.zeros((300, 1), np.uint8)),
        "wide.jpg": encode(np.zeros((2, 2000), np.uint8), "JPEG"),
    }
