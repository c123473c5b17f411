"""JPEGs decoded by OpenCV into arrays: Pillow's pixels in two thirds of its time, or at a half, quarter or eighth.

Both wrap libjpeg-turbo with its accurate transforms. Pillow keeps four bytes a pixel and hands an array over by two
copies, which OpenCV spares. A reduced image is computed from the lowest frequencies of each block of 8 x 8 (the scaled
inverse DCT of libjpeg): less arithmetic, while the entropy coding is still read as a whole.
"""

from __future__ import annotations

import numpy as np

try:
    import cv2
except ImportError:  # of requirements/mm.txt: without it all images are decoded by Pillow
    cv2 = None  # type: ignore[assignment]

FACTORS = (8, 4, 2, 1)  # by which libjpeg reduces both sides while decoding


def decode_jpeg(data: bytes, factor: int = 1) -> np.ndarray | None:
    """The stored pixels of a JPEG in grey or colour, its orientation left alone.

    Args:
        data: the file.
        factor: one of `FACTORS`.

    Returns:
        (ceil(H / factor), ceil(W / factor), 3) uint8 in the order RGB. None where OpenCV is not there or does not
        decode it, and for data that do not end as a JPEG does: OpenCV would fill up what is missing.
    """
    if cv2 is None or not hasattr(cv2, "IMREAD_COLOR_RGB") or data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    flag = cv2.IMREAD_COLOR_RGB if factor == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if pixels is None or factor == 1:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)


def planes(pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(..., W, 3) uint8, contiguous, as (3, N) planes of its N pixels, written to `out` if given."""
    flat = pixels.reshape(-1, pixels.shape[-2], 3)
    out = np.empty((3, flat.shape[0] * flat.shape[1]), np.uint8) if out is None else out.reshape(3, -1)
    if cv2 is None:
        np.copyto(out, flat.reshape(-1, 3).T)
    else:  # an eighth of the time
        cv2.split(flat, [plane.reshape(flat.shape[:2]) for plane in out])
    return out
