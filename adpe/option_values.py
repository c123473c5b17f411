"""The text of option values: the one parser of ``KEY=VALUE`` on every command line, and its inverse."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Sequence
from typing import Any

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?|[+-]?(inf|nan)")
_WORDS = {"true": True, "false": False}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def parse_value(text: str) -> Any:
    """The value that the text of an option stands for.

    Numbers, ``true``/``false`` (any case) and ``None`` are what they say. ``[a, b]`` is a list and ``(a, b)`` a tuple,
    with or without quotes around its strings; ``{'a': 1}`` is a dict. A Python string literal is its contents: quotes
    keep a number, or anything else, a string. Numbers separated by commas are a list. Everything else is the string
    as it was typed, with its spaces, commas, brackets and quotes.
    """
    stripped = text.strip()
    quoted = _string_literal(stripped)
    if quoted is not None:
        return quoted
    number = _scalar(stripped)
    if number is not stripped:
        return number
    if stripped[:1] in _CLOSING:
        literal = _literal(stripped)
        if isinstance(literal, (list, tuple, dict)):
            return literal
        if stripped[0] != "{" and _closes_at_the_end(stripped):
            elements = [parse_value(part.strip()) for part in _split(stripped[1:-1])]
            return elements if stripped[0] == "[" else tuple(elements)
        return text
    if "," in stripped[:-1]:
        numbers = [_scalar(part.strip()) for part in stripped.removesuffix(",").split(",")]
        if not any(isinstance(number, str) for number in numbers):
            return numbers
    return text


def option_text(value: Any) -> str:
    """The text that `parse_value` reads as `value`.

    Args:
        value: None, a bool, number or string, or a list, tuple or dict of these.
    """
    if isinstance(value, str):
        return value if _is_plain(value) else repr(value)
    if isinstance(value, list):
        return "[" + ",".join(_element_text(item) for item in value) + "]"
    if isinstance(value, tuple):
        return "(" + ",".join(_element_text(item) for item in value) + ")"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value and isinstance(_scalar(short), float) else repr(value)
    return str(value)


class OptionAction(argparse.Action):
    """argparse action for ``--cfg-options KEY=VALUE ...``: a dict of parsed values, later ones in place of earlier."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for text in [values] if isinstance(values, str) else values or []:
            key, separator, value = text.partition("=")
            if not separator or not key.strip():
                parser.error(f"{option_string}: expected KEY=VALUE, got {text!r}. Quote values that contain spaces.")
            options[key.strip()] = parse_value(value)
        setattr(namespace, self.dest, options)


def _scalar(text: str) -> Any:
    """A number, bool or None, else `text` itself."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return None if text == "None" else _WORDS.get(text.lower(), text)


def _string_literal(text: str) -> str | None:
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return None
    value = _literal(text)
    return value if isinstance(value, str) else None


def _literal(text: str) -> Any:
    """The value of a Python literal, None for any other text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_plain(text: str) -> bool:
    value = parse_value(text)
    return isinstance(value, str) and value == text


def _element_text(item: Any) -> str:
    return repr(item) if isinstance(item, str) else option_text(item)


def _positions(text: str) -> list[tuple[int, str, int]]:
    """(index, character, depth of brackets after it) of the characters outside of quotes; depth -1 if unbalanced."""
    found, stack, quote = [], [], ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
            continue
        # A quote inside a word is an apostrophe.
        if character in "'\"" and not text[:index].rstrip()[-1:].isalnum() and character in text[index + 1 :]:
            quote = character
            continue
        if character in _CLOSING:
            stack.append(_CLOSING[character])
        elif character in _CLOSING.values() and (not stack or stack.pop() != character):
            return [(index, character, -1)]
        found.append((index, character, len(stack)))
    return found if not stack else [(len(text), "", -1)]


def _closes_at_the_end(text: str) -> bool:
    """Whether the bracket that `text` begins with is closed by its last character."""
    first = next((index for index, _, depth in _positions(text) if depth <= 0), -1)
    return first == len(text) - 1 and text[-1] == _CLOSING[text[0]]


def _split(text: str) -> list[str]:
    """The parts between the commas that are outside of brackets and quotes; a last empty one is left out."""
    commas = [index for index, character, depth in _positions(text) if character == "," and depth == 0]
    parts = [text[a + 1 : b] for a, b in zip([-1, *commas], [*commas, len(text)], strict=True)]
    return parts[:-1] if not parts[-1].strip() else parts
