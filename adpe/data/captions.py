"""Captions of images as numbers of words, from a COCO file of captions, or of boxes that are put into words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adpe.errors import UserError

_WORD = re.compile(r"[\w'-]+")


class Captions:
    """Words of captions by image.

    Args:
        file: COCO JSON: ``annotations`` with ``caption``; or with ``bbox`` and ``category_id``, from which
            :func:`caption_of_boxes` makes one caption an image.
        words: all that occur, in lower case; word i is number ``i + 1``, and 0 is padding.
        length: most words of a caption.
        images: paths of all images, in the order of their numbers; matched by their file names.

    Raises:
        UserError: for a file that is none, an image without a caption, a word that is not among `words`, or a caption
            of more words.
    """

    def __init__(self, file: str, words: Sequence[str], length: int, images: Sequence[str]) -> None:
        numbers = numbers_of(words)
        by_name = read_captions(file)
        missing = [path for path in images if Path(path).name not in by_name]
        if missing:
            raise UserError(f"captions: {file} has none for {len(missing)} of {len(images)} images, e.g. {missing[0]}.")
        self.ids = [[encode(caption, numbers, length, file) for caption in by_name[Path(path).name]] for path in images]

    def draw(self, index: int, generator: random.Random) -> Tensor:
        """``(length,)`` int64 of one of an image's captions, padded by 0."""
        return generator.choice(self.ids[index])


def numbers_of(words: Sequence[str]) -> dict[str, int]:
    """Word to number, from 1.

    Raises:
        UserError: for no words, doubles, or what is not one lower-case word.
    """
    wrong = [
        word for word in words if not isinstance(word, str) or _WORD.fullmatch(word) is None or word.lower() != word
    ]
    if not words or wrong or len(set(words)) < len(words):
        raise UserError(f"words: expected different words in lower case, got {wrong or list(words)}.")
    return {word: number for number, word in enumerate(words, start=1)}


def encode(caption: str, numbers: dict[str, int], length: int, source: str = "caption") -> Tensor:
    """``(length,)`` int64 of a caption's words, padded by 0; punctuation and upper case are dropped.

    Raises:
        UserError: for an unknown word, or more than `length`.
    """
    found = _WORD.findall(caption.lower())
    unknown = [word for word in found if word not in numbers]
    if unknown or not found:
        raise UserError(
            f"{source}: {caption!r} has no word among the {len(numbers)} known ones: {unknown[:3]}. Known are "
            f"{', '.join(list(numbers)[:30])}."
        )
    if len(found) > length:
        raise UserError(
            f"{source}: {caption!r} has {len(found)} words, expected at most {length}: set captions.length."
        )
    return torch.tensor([numbers[word] for word in found] + [0] * (length - len(found)))


def read_captions(file: str) -> dict[str, list[str]]:
    """Captions by the images' file names.

    Raises:
        UserError: for a file that is no COCO JSON of captions or boxes.
    """
    try:
        content = json.loads(Path(file).read_text())
        names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
        annotations: dict[Any, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            annotations.setdefault(annotation["image_id"], []).append(annotation)
        categories = {one["id"]: one["name"] for one in content.get("categories", [])}
        found: dict[str, list[str]] = {}
        for number, own in annotations.items():
            said = [one["caption"] for one in own if "caption" in one]
            if not said:
                said = [caption_of_boxes([(categories[one["category_id"]], one["bbox"]) for one in own])]
            found.setdefault(names[number], []).extend(map(str, said))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"captions: {file} is no COCO JSON of captions, or of boxes with categories ({type(error).__name__}: "
            f"{error})."
        ) from None
    return found


def caption_of_boxes(boxes: Sequence[tuple[str, Sequence[float]]]) -> str:
    """What is where: "a 2", or "a 2 left of a 0" and so on along the axis on which the first two centres differ most.

    Args:
        boxes: name and (x, y, width, height) of one or more objects, pixels.
    """
    centres = [(name, x + w / 2, y + h / 2) for name, (x, y, w, h) in boxes]
    if len(centres) == 1:
        return f"a {centres[0][0]}"
    (_, x0, y0), (_, x1, y1) = centres[:2]
    axis, word = (1, "left of") if abs(x0 - x1) >= abs(y0 - y1) else (2, "above")
    return f" {word} ".join(f"a {centre[0]}" for centre in sorted(centres, key=lambda centre: centre[axis]))
