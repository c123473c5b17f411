"""Variables at the top level of a config and its bases, and what is computed from them.

In mmengine's configs a base is executed before its child: what it computes from its variables does not follow a child
that assigns one of them anew, nor a command line. Here both take effect where the variable is assigned.

The configs of mmseg, mmdet and mmpretrain assign names anew that their bases are not meant to follow; they are read
as mmengine reads them. A config of your own over them reaches the variables that it does not itself use.
"""

from __future__ import annotations

import ast
import copy
import difflib
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from adpe.config_names import is_config
from adpe.config_names import text as text_of
from adpe.engine.mmengine_internals import is_lazy_config
from adpe.engine.options.paths import deletions_first, put, suggest
from adpe.errors import UserError

_FRAMEWORKS = ("mmseg", "mmdet", "mmpretrain")
_DIRECTORY = re.compile(r"\{\{\s*fileDirname\s*\}\}")
_ROUNDS = 8
# What the statements that are added to configs put in place of their variables, while the configs are read.
_given: dict[str, dict[str, Any]] = {}


@dataclass
class Source:
    """A config file.

    Attributes:
        path: of the file.
        tree: its syntax, or None if it is read as it is: JSON, YAML, configs with ``read_base``.
        bases: its bases; a string is one inside a package (``mmdet::...``).
    """

    path: Path
    tree: ast.Module | None = None
    bases: list[Source | str] = field(default_factory=list)

    @cached_property
    def assigned(self) -> dict[str, list[ast.stmt]]:
        """Names bound at the top level, and the statements that bind them."""
        names: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body if self.tree else ():
            for name in _bound(statement):
                names.setdefault(name, []).append(statement)
        return names

    @cached_property
    def loaded(self) -> set[str]:
        """Names that the file computes with, of its own."""
        nodes = ast.walk(self.tree) if self.tree else ()
        return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}

    @cached_property
    def from_base(self) -> set[str]:
        """Names that the file reads of its bases, as ``_base_.name``."""
        return _base_names(self.tree) if self.tree else set()

    @cached_property
    def is_frameworks(self) -> bool:
        """Whether it belongs to an installation or a checkout of mmseg, mmdet or mmpretrain."""
        return any((parent / name / "__init__.py").is_file() for parent in self.path.parents for name in _FRAMEWORKS)

    def files(self) -> Iterator[Source]:
        """This file, then its bases with theirs."""
        yield self
        for base in self.bases:
            if isinstance(base, Source):
                yield from base.files()


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
        return set()
    nodes = ast.walk(statement)
    inner = {
        node.id
        for comprehension in ast.walk(statement)
        if isinstance(comprehension, ast.comprehension)
        for node in ast.walk(comprehension.target)
        if isinstance(node, ast.Name)
    }
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored - inner - {"_base_"}


def _base_names(node: ast.AST) -> set[str]:
    names = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "_base_":
            names.add(each.attr)
        elif isinstance(each, ast.Subscript) and isinstance(each.value, ast.Name) and each.value.id == "_base_":
            names |= {str(key.value) for key in ast.walk(each.slice) if isinstance(key, ast.Constant)}
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            names |= set(re.findall(r"\{\{\s*_base_\.(\w+)", each.value))
    return names


def find_sources(path: Path) -> Source:
    """A config and its bases.

    Raises:
        UserError: if one is missing, not text, or not valid Python.
    """
    if path.suffix != ".py":
        return Source(path)
    try:
        text = text_of(path)
        tree = ast.parse(_DIRECTORY.sub(lambda _: path.parent.as_posix(), text))
    except (SyntaxError, UnicodeDecodeError) as error:
        if isinstance(error, SyntaxError) and "{{" in text:  # mmengine replaces these before it parses
            return Source(path)
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"config {path}{where} is not valid Python: {error}") from None
    if path.is_file() and is_lazy_config(path):
        return Source(path)
    source = Source(path, tree)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "_base_" for target in statement.targets
        ):
            source.bases = [_base(path, name) for name in _base_files(path, statement)]
            break
    return source


def _base_files(path: Path, statement: ast.Assign) -> list[str]:
    """The value of ``_base_``: a path or several, or an expression of constants, as mmengine reads it."""
    expression = ast.Expression(statement.value)
    try:
        value = eval(compile(expression, str(path), "eval"), {}, {})
    except Exception as error:
        raise UserError(
            f"config {path}, line {statement.lineno}: _base_ cannot be read ({type(error).__name__}: {error}). It is "
            "evaluated before the rest of the file and knows none of its names: write the paths."
        ) from None
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise UserError(f"config {path}, line {statement.lineno}: _base_ must name files, got {wrong[0]!r}.")
    return names


def _base(path: Path, name: str) -> Source | str:
    if "::" in name:
        return name
    file = (path.parent / name).resolve()
    if not is_config(file):
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], 3, 0.7)
        raise UserError(f"config {path}: base {name} does not exist. " + suggest("Did you mean", near))
    return find_sources(file)


def given(token: str, name: str, value: Any) -> Any:
    """What takes the place of a variable: called by the statements that `_write` adds to configs."""
    return _given[token][name](value)


class _Options:
    """Options for one variable, applied to its value as far as they fit it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, value: Any) -> Any:
        for option, new in deletions_first(dict(self.options)).items():
            try:
                value = put(value, option.split(".")[1:], copy.deepcopy(new))
            except KeyError:
                continue  # reported when the option is put into the finished config
        return value


class _Constant:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, value: Any) -> Any:
        return copy.deepcopy(self.value)


_Changes = dict[Path, dict[str, Any]]


def _read(source: Source, changes: _Changes) -> Config:
    """Read a config through mmengine, with `changes` (by file and variable) worked into copies of its files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            file = _write(source, changes, folder)
            return Config.fromfile(file, import_custom_modules=False)
        except Exception as error:  # a config is a program, which can fail in any way
            lines = str(error).strip().splitlines() or [""]
            reason = re.sub(rf"{re.escape(str(folder))}/[^/]+/", "", lines[-1])
            raise UserError(f"config {source.path} cannot be read: {type(error).__name__}: {reason}") from None
        finally:
            _given.clear()


def _write(source: Source, changes: _Changes, folder: Path) -> Path:
    """The file to read: a changed copy in `folder`, or the file itself where nothing changes."""
    bases = [base if isinstance(base, str) else str(_write(base, changes, folder)) for base in source.bases]
    own = {name: change for name, change in changes.get(source.path, {}).items() if name in source.assigned}
    moved = any(
        isinstance(base, Source) and str(base.path) != new for base, new in zip(source.bases, bases, strict=True)
    )
    if source.tree is None or not (own or moved or not source.path.is_file()):
        return source.path
    token = str(len(_given))
    _given[token] = own
    body: list[ast.stmt] = []
    for statement in source.tree.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "_base_" for target in statement.targets
        ):
            body += ast.parse(f"_base_ = {bases!r}").body
            continue
        body.append(statement)
        for name in sorted(_bound(statement) & set(own)):
            # An import statement would make this a config of another kind for mmengine.
            call = f"__import__({__name__!r}, fromlist=['given']).given({token!r}, {name!r}, {name})"
            body += ast.parse(f"{name} = {call}").body
    copied = Path(tempfile.mkdtemp(dir=folder)) / source.path.name
    copied.write_text(ast.unparse(ast.Module(body, [])), encoding="utf-8")
    return copied


def _pushed(changes: _Changes, followers: Mapping[str, Sequence[Source]], values: Mapping[str, Any]) -> _Changes:
    """`changes`, and the values of followers in the files that are to take them."""
    pushed = {path: dict(names) for path, names in changes.items()}
    for name, value in values.items():
        for file in followers[name]:
            pushed.setdefault(file.path, {})[name] = _Constant(value)
    return pushed


class Variables:
    """The variables of a config and its bases.

    Args:
        source: the config.
        keys: top-level keys that are used by themselves, whether or not anything is computed from them.
    """

    def __init__(self, source: Source, keys: Collection[str]) -> None:
        self.source, self.keys = source, keys
        self.files = list(source.files())
        self.from_base = {name for file in self.files for name in file.from_base}
        self.computed_with = self.from_base | {name for file in self.files for name in file.loaded}

    def read(self, options: Mapping[str, Any]) -> Config:
        """The config, with options and the variables of children at work in all that is computed from them.

        Args:
            options: dotted keys and values; those of no variable are left aside.

        Raises:
            UserError: if the config cannot be read, or a child's variable depends on itself through a base.
        """
        changes: _Changes = {}
        fixed = {option.partition(".")[0] for option in options}
        for file in self.files:
            for name in fixed & set(file.assigned) & self.computed_with:
                own = {option: value for option, value in options.items() if option.partition(".")[0] == name}
                changes.setdefault(file.path, {})[name] = _Options(own)
        followers = {name: files for name, files in self._followers().items() if name not in options}
        cfg = _read(self.source, changes)
        if not followers:
            return cfg
        values: dict[str, Any] = {}
        for _ in range(_ROUNDS):
            now = {name: value for name, value in cfg.to_dict().items() if name in followers}
            for name in [name for name in values if isinstance(now.get(name), dict)]:
                # A child's dict is merged into the base's, which may be computed from the others.
                others = {other: value for other, value in values.items() if other != name}
                now[name] = _read(self.source, _pushed(changes, followers, others)).to_dict().get(name)
            if now == values:
                return cfg
            values = now
            cfg = _read(self.source, _pushed(changes, followers, values))
        changing = [name for name in followers if cfg.to_dict().get(name) != values.get(name)]
        raise UserError(
            f"config {self.source.path}: {changing[0]} depends on itself through its base: write its value."
        )

    def _followers(self) -> dict[str, list[Source]]:
        """Variables that a child assigns anew, and the files in which they are to take the child's value."""
        followers: dict[str, list[Source]] = {}
        for name in sorted(self.computed_with):
            files = [file for file in self.files if name in file.assigned]
            if len(files) < 2 or files[0].is_frameworks:
                continue
            child, lower = files[0], files[1:]
            lower = [
                file
                for file in lower
                if not file.is_frameworks or not (name in self.keys or name in child.loaded | child.from_base)
            ]
            if lower and (name in self.from_base or any(name in file.loaded for file in lower)):
                # A value computed from the base's own is computed once.
                own = [name in _base_names(statement) for statement in child.assigned[name]]
                followers[name] = [*([child] if any(own) else []), *lower]
        return followers

    def without_effect(self) -> list[str]:
        """Variables that a config over bases assigns and nothing is computed from."""
        return [
            name
            for file in self.files
            if file.bases and not file.is_frameworks
            for name, statements in file.assigned.items()
            if name not in self.keys and name not in self.computed_with and not name.startswith("_")
            if any(isinstance(statement, (ast.Assign, ast.AnnAssign)) for statement in statements)
        ]

    @cached_property
    def names(self) -> set[str]:
        """All variables that something is computed from."""
        return {name for file in self.files for name in file.assigned if name in self.computed_with}
