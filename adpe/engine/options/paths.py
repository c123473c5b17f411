"""Dotted keys into the dicts, lists and tuples of a config: finding them, setting them, suggesting them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from adpe.errors import UserError

_DELETE = "_delete_"


def put(node: Any, keys: Sequence[str], value: Any) -> Any:
    """A copy of `node` with `value` under `keys`; None and what is missing on the way become dicts.

    A dict put in the place of a dict is merged with it, unless it has ``_delete_=True``, as in mmengine's configs.

    Raises:
        KeyError: with a sentence, where a key leads through a value that has none, or beyond the end of a list.
    """
    if not keys:
        if isinstance(node, (list, tuple)) and isinstance(value, str) and "," in value:
            raise KeyError(f"it is a list: write [{value}].")
        if not (isinstance(value, dict) and isinstance(node, dict)):
            return value
        value = dict(value)
        result = {} if value.pop(_DELETE, False) else dict(node)
        for name, item in value.items():
            result[name] = put(result.get(name), [], item)
        return result
    key, rest = keys[0], keys[1:]
    if node is None:
        node = {}
    if isinstance(node, (list, tuple)):
        if not (key.isascii() and key.isdigit() and int(key) < len(node)):
            raise KeyError(f"{key} is not one of 0..{len(node) - 1}." if node else f"{key} is in an empty list.")
        items = list(node)
        items[int(key)] = put(items[int(key)], rest, value)
        return type(node)(items)
    if not isinstance(node, dict):
        raise KeyError(f"{key} is below {node!r}, which has no keys.")
    if key == _DELETE and not rest:
        return {} if value else node
    result = dict(node)
    result[key] = put(result.get(key), rest, value)
    return result


def deletions_first(options: dict[str, Any]) -> dict[str, Any]:
    """The options, those that empty a dict (``..._delete_=True``) before those that fill it."""
    return dict(sorted(options.items(), key=lambda item: not item[0].endswith(f".{_DELETE}")))


def check_option(cfg: dict[str, Any], option: str, top_level: Iterable[str], given: Collection[str] = ()) -> None:
    """Refuse a dotted key that leads nowhere in a config.

    A new argument of a component, or what is below it, is allowed unless it looks like a misspelt one: the component
    refuses what it does not know.

    Args:
        cfg: the config.
        option: the key.
        top_level: keys that a config may leave out.
        given: all options.

    Raises:
        UserError: naming the keys that are there.
    """
    node: Any = cfg
    keys = option.split(".")
    for depth, key in enumerate(keys):
        if isinstance(node, (list, tuple)):
            if not (key.isascii() and key.isdigit() and int(key) < len(node)):
                return  # `put` refuses it
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        elif node is None and depth:
            return
        elif isinstance(node, dict):
            known = {*node, *top_level} if depth == 0 else set(node)
            # Keys that other options have just put there are no model for this one.
            known -= {name for name in known if ".".join([*keys[:depth], name]) in given}
            near = difflib.get_close_matches(key, known, 3, 0.7)
            if key == _DELETE or (key in top_level if depth == 0 else not near):
                return
            raise UserError(
                f"--cfg-options {option}: the config has no {'.'.join(keys[: depth + 1])}. "
                + suggest("Did you mean", near or sorted(node)[:8])
            )
        else:
            return


def places(node: Any, name: str, value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys below the top level that end in `name`, or hold `value`, a list or dict, or more than that dict."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for part, item in items:
        path = f"{key}.{part}" if key else str(part)
        same = isinstance(value, list) and item == value
        if isinstance(value, dict) and isinstance(item, dict):
            same = all(sub in item and item[sub] == one for sub, one in value.items())
        if key and (part == name or (same and value)):
            yield path
        else:
            yield from places(item, name, value, path)


def suggest(words: str, names: Iterable[str]) -> str:
    """``words: a, b?``, or nothing if there are no names."""
    names = list(names)
    return f"{words}: {', '.join(names)}?" if names else ""
