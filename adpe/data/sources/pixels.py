"""What an encoded image means in pixels: the one policy of every reader of images.

Pretraining, classification, k-NN and pictures read through `adpe.data.sources.images`, segmentation, detection and the
frameworks' inferencers through `adpe.data.loading`; both come here.

| in the file | becomes |
|---|---|
| EXIF or XMP orientation | the image is turned upright; with annotations, see `orientation_to_apply` |
| 16-bit grey or colour | value // 256, as in OpenCV and torchvision; one whose values are all below 4096 is named |
| 12-bit TIFF | value // 16 |
| float | 0..1 becomes 0..255, rounded; other values are refused |
| 32-bit integers | refused: they have no agreed white |
| alpha | dropped, the colour under it is taken |
| palette, 1 bit, CMYK, YCbCr | Pillow's conversion to RGB |
| several frames or pages | the first |
| truncated or damaged | refused, never filled up |
| more than 89,478,485 pixels, or one side more than 100 times the other | refused |

Refused is a `CorruptImageError` with the path; what it does is the reader's: in training the image is skipped with a
warning, in evaluation it is an error. Label maps are never read here: they keep their pixels.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from adpe.data.sources.jpeg import decode_jpeg
from adpe.errors import UserError

MAX_PIXELS = 89_478_485  # Pillow's own warning threshold, which other code may have switched off
MAX_ASPECT = 100  # resizing by the shorter or the longer side leaves no pixel of an image much thinner than this

# No format whose decoder runs programs (EPS) or fetches other files, whatever the name of the file says.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# TIFF 6.0, section 8 and SampleFormat of section 19.
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

FACTORS = (8, 4, 2, 1)  # by which libjpeg reduces both sides while decoding
Size = tuple[int, int]  # width, height in pixels
logger = logging.getLogger(__name__)
_named_folders: set[str] = set()


class CorruptImageError(UserError):
    """An image that cannot be read as the policy says; the message holds its path."""


class RefusedImage(ValueError):
    """What the policy has against an image that decodes: a sentence to stand after its path."""


@dataclass(frozen=True)
class Header:
    """What the header of an image says.

    Attributes:
        stored: width and height of the stored pixels.
        orientation: EXIF orientation, 1..8.
    """

    stored: Size
    orientation: int

    @property
    def upright(self) -> Size:
        """Width and height of the image turned upright."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def decode_image(
    data: bytes, name: str, annotated: Size | Callable[[], Size | None] | None = None, upright: bool = True
) -> Image.Image:
    """The pixels of an encoded image.

    Args:
        data: the file.
        name: its path, for messages.
        annotated: (width, height) of the pixels that its boxes, masks or label map are drawn on, or a function that
            finds it, called for an image with an orientation alone; None without annotations.
        upright: whether to turn the image by its orientation at all.

    Returns:
        an image of mode RGB.

    Raises:
        CorruptImageError: for what the policy refuses.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_shape(*image.size)
        turns_itself = image.format == "TIFF"  # Pillow turns these while decoding
        header = _header(image) if turns_itself else None
        image.load()
        header = header or _header(image)
        rgb = _to_rgb(image, name)
        applied = 1
        if upright:
            if callable(annotated):
                annotated = annotated() if header.orientation != 1 else None
            applied = orientation_to_apply(header, annotated)
        if turns_itself and applied != header.orientation:
            return rgb.transpose(_UPRIGHT[{6: 8, 8: 6}.get(header.orientation, header.orientation)])
        return rgb if turns_itself or applied == 1 else rgb.transpose(_UPRIGHT[applied])
    except MemoryError:
        raise
    except RefusedImage as refused:
        raise CorruptImageError(f"{name} {refused}") from None
    except Exception as error:  # Pillow's decoders raise many kinds, of which its documentation names two
        raise unreadable(name, error) from error


def decode_pixels(data: bytes, name: str, reduction: Callable[[int, int], int] | None = None) -> tuple[np.ndarray, int]:
    """The pixels of `decode_image` as an array, which for a JPEG is made faster, and may be made smaller.

    Args:
        data: the file.
        name: its path, for messages.
        reduction: is given the height and width of the whole image, maybe more than once, and returns by which of
            `FACTORS` it may be reduced. A JPEG that is upright and grey or RGB is, by the scaled inverse transform of
            libjpeg: less arithmetic, while the entropy coding is still read as a whole. Others stay whole.

    Returns:
        (ceil(height / factor), ceil(width / factor), 3) uint8, and the factor.

    Raises:
        CorruptImageError: for what the policy refuses.
    """
    pixels = _decode_plain_jpeg(data, reduction)
    if pixels is not None:
        return pixels
    whole = decode_image(data, name)
    if reduction is not None:
        reduction(whole.height, whole.width)
    return np.asarray(whole), 1


def _decode_plain_jpeg(data: bytes, reduction: Callable[[int, int], int] | None) -> tuple[np.ndarray, int] | None:
    """As `decode_pixels`, of a whole JPEG that is upright and grey or RGB; None of any other file."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            _check_shape(*image.size)
            height, width = image.height, image.width
            if image.mode not in ("RGB", "L") or _header(image).orientation != 1:
                return None
            factor = 1 if reduction is None else reduction(height, width)
            if factor > 1:
                image.draft(None, (width // factor, height // factor))
                if image.size != (-(-width // factor), -(-height // factor)):
                    return None
                return np.asarray(image.convert("RGB")), factor
    except Exception:
        return None  # `decode_image` says what is wrong
    pixels = decode_jpeg(data)
    return None if pixels is None else (pixels, 1)


def decode_picture(data: bytes, name: str, shape: Sequence[int] | None = None) -> Image.Image:
    """The image under predictions for (height, width) pixels, turned as `decode_image` turned it for the model.

    Raises:
        CorruptImageError: for what the policy refuses.
    """
    image = decode_image(data, name)
    if shape is None or tuple(shape[:2]) == (image.height, image.width):
        return image
    return decode_image(data, name, upright=False)


def unreadable(name: str, error: Exception) -> CorruptImageError:
    """The sentence for an image that cannot be read or decoded."""
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f"no {', '.join(_FORMATS)}, or a damaged or unusual one"
    else:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
    return CorruptImageError(f"{name} cannot be read as an image ({reason}). Replace or remove it.")


def orientation_to_apply(header: Header, annotated: Size | None) -> int:
    """The EXIF orientation by which an image is turned: its own, or 1 (not at all) for annotations of stored pixels.

    Without annotations an image is turned upright. With them, their size tells which pixels they were drawn on. Where
    it cannot, as the upright and the stored image have the same size (orientations 2, 3, 4, and squares), nobody can
    know, and the image is refused.

    Args:
        header: of the image.
        annotated: (width, height) that the annotations are made for, None without any.

    Raises:
        RefusedImage: if the annotations fit neither the stored nor the upright image, or both.
    """
    if annotated is None:
        return header.orientation
    if annotated not in (header.stored, header.upright):
        sizes = _words(header.stored) + (f" ({_words(header.upright)} upright)" if header.orientation != 1 else "")
        raise RefusedImage(
            f"is {sizes} pixels, but its annotations are for {_words(annotated)}: boxes and masks would not fit. "
            "Correct the one or the other."
        )
    if header.orientation == 1 or header.stored != header.upright:
        return header.orientation if annotated == header.upright else 1
    raise RefusedImage(
        f"has EXIF orientation {header.orientation}, and its annotations, for {_words(annotated)} pixels, may have "
        "been drawn on the stored or on the upright image. Remove the tag if they fit the stored pixels (exiftool "
        "-Orientation= FILE), or turn the pixels themselves if they fit the upright ones (mogrify -auto-orient FILE)."
    )


def read_header(file: str | os.PathLike[str] | IO[bytes]) -> Header:
    """Size and orientation of an image, without decoding it (but for a PNG that says nothing of EXIF before its pixels,
    whose orientation is found by `decode_image` alone).

    Raises:
        OSError, ValueError, SyntaxError: if it is not an image.
    """
    with Image.open(file, formats=_FORMATS) as image:
        if image.format == "PNG" and "exif" not in image.info:
            return Header(image.size, 1)
        return _header(image)


def may_be_turned(path: str | os.PathLike[str]) -> bool:
    """Whether an image may have an orientation, by its first 4 KiB: a fast sieve before `read_header`."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(4096)
    return start[:2] != b"\xff\xd8" or b"Exif\0\0" in start or b"Orientation" in start


def _header(image: Image.Image) -> Header:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata of an image that may be whole
        orientation = 1
    orientation = orientation if orientation in _UPRIGHT else 1
    # Pillow gives the upright size of a TIFF.
    swapped = image.format == "TIFF" and orientation >= 5
    return Header(image.size[::-1] if swapped else image.size, orientation)


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels, one side more than {MAX_ASPECT} times the other")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode != "I" and _SIGNED in np.ravel(tags.get(_TIFF_SAMPLE_FORMAT, 1)):
        raise RefusedImage("has signed integers, which have no agreed black. Save it with unsigned ones.")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(_from_16_bits(image, name)).convert("RGB")
    if image.mode == "I":
        low, high = image.getextrema()
        raise RefusedImage(
            f"has 32-bit integers ({low}..{high}), which have no agreed white. Save it with 8 or 16 bits a channel."
        )
    if image.mode == "F":
        values = np.asarray(image)
        # Not of NaN either.
        if not (values.min() >= 0 and values.max() <= 1):
            raise RefusedImage(
                f"has floating-point values {values.min():g}..{values.max():g}, expected 0 (black) to 1 (white). "
                "Scale them, or save it with 8 or 16 bits a channel."
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, name: str) -> np.ndarray:
    """(H, W) uint8 of a greyscale image with 16 (or in a TIFF 12) bits."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = int(np.max(tags.get(_TIFF_BITS, 16)))
    largest = int(values.max())
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 2**bits - 1 - values
    elif bits == 16 and 0 < largest < 4096:
        folder = os.path.dirname(name)
        if folder not in _named_folders:
            _named_folders.add(folder)
            logger.warning(
                "%s: its 16-bit values are at most %d of 65535; divided by 256 they give %d grey levels, nearly black. "
                "Stretch the values over 0..65535 if they mean more. Others in %s are not named.",
                *(name, largest, largest // 256 + 1, folder or "."),
            )
    return (values >> (bits - 8)).astype(np.uint8)


def _words(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
