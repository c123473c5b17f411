"""Maps of parts that are given with the images, e.g. by a segmentation, and follow their crops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adpe.data.views.multicrop import CropBox
from adpe.errors import UserError

NO_PART = 255


class PartMaps:
    """A folder of ``<image's name>.png`` of one channel and of the image's size: the part of every pixel, 255 for none.

    Args:
        folder: of the maps.
        num_parts: parts are 0 to ``num_parts - 1``.
        images: paths of all images, in the order of their numbers.

    Raises:
        UserError: if two images have one name, or an image has no map.
    """

    def __init__(self, folder: str, num_parts: int, images: Sequence[str]) -> None:
        if not 2 <= num_parts < NO_PART:
            raise UserError(f"maps: num_parts={num_parts}, expected 2 to {NO_PART - 1}.")
        if not Path(folder).is_dir():
            raise UserError(f"maps: {folder} is no folder: expected one of <image's name>.png.")
        self.folder, self.num_parts = Path(folder), num_parts
        self.names = [Path(path).stem for path in images]
        name, times = Counter(self.names).most_common(1)[0]
        if times > 1:
            raise UserError(f"maps: {times} images are named {name}, so that {folder}/{name}.png cannot be told apart.")
        missing = sorted(set(self.names) - {path.stem for path in self.folder.glob("*.png")})
        if missing:
            raise UserError(f"maps: {len(missing)} images have no map, e.g. {folder}/{missing[0]}.png.")

    def crops(self, index: int, size: tuple[int, int], boxes: Sequence[CropBox], side: int) -> Tensor:
        """Crops of an image's map by nearest sampling, ``(K, 1, side, side)`` int16, -1 for no part.

        Args:
            index: number of the image.
            size: (height, width) of the image, pixels.
            boxes: of its crops.
            side: pixels along a side of a crop.

        Raises:
            UserError: for a map of more channels, another size, or another part.
        """
        path = self.folder / f"{self.names[index]}.png"
        try:
            with Image.open(path) as opened:
                field = np.asarray(opened)
        except (OSError, SyntaxError) as error:
            raise UserError(f"maps: {path} cannot be read ({error}).") from None
        if field.dtype != np.uint8 or field.shape != size:
            raise UserError(f"maps: {path} is {field.dtype} {field.shape}, expected uint8 {size} as the image.")
        wrong = field[(field >= self.num_parts) & (field != NO_PART)]
        if len(wrong):
            raise UserError(f"maps: {path} has part {wrong[0]}, expected 0 to {self.num_parts - 1}, or {NO_PART}.")
        found = []
        for top, left, height, width, flipped in boxes:
            rows = top + ((np.arange(side) + 0.5) * height / side).astype(int)
            columns = left + ((np.arange(side) + 0.5) * width / side).astype(int)
            found.append(field[rows[:, None], columns[::-1] if flipped else columns])
        parts = torch.from_numpy(np.stack(found).astype(np.int16)).unsqueeze(1)
        return parts.masked_fill_(parts == NO_PART, -1)
