"""Checkpoint files on disk: reading them without executing anything, and building the model that one was made with."""

from __future__ import annotations

import argparse
import ast
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from adpe.errors import UserError, require
from adpe.methods.base import PretrainingMethod
from adpe.methods.factory import autoencoder_of, create_method
from adpe.models.factory import create_encoder
from adpe.models.vit import VisionTransformer

# Options of a config's model and backbone that are not the network's.
NOT_THE_NETWORK = ("type", "compile", "data_preprocessor", "out_indices", "final_norm", "frozen_stages", "init_cfg")

PICKLES = (".pkl", ".pickle")

# First bytes of files that are mistaken for checkpoints, in lower case.
_OTHER_FORMATS = {
    b"\x89hdf\r\n": ("an HDF5 file, as Keras writes", "Convert it to PyTorch first."),
    b"version https://git-lfs": ("a pointer of Git LFS instead of the file", "Run git lfs pull."),
    b"<!doctype": ("a web page", "Download the file itself."),
    b"<html": ("a web page", "Download the file itself."),
    b"<?xml": ("an XML document, such as a server's error", "Download the file itself."),
    b"\x1f\x8b": ("gzip-compressed", "Unpack it first."),
}


class LoggedScalar:
    """Stands for mmengine's HistoryBuffer, whose state it takes as attributes: reading one needs no mmengine."""

    _log_history: np.ndarray
    _count_history: np.ndarray

    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """The logged values and the number of items behind each, both of shape (n,)."""
        return self._log_history, self._count_history


def _no_attribute(*_: object) -> None:
    """Stands for `getattr`, with which those logs name their methods: nothing is looked up."""


_multiarray = getattr(np, "_core", None) or np.core
_reconstruct, _scalar = _multiarray.multiarray._reconstruct, _multiarray.multiarray.scalar
# What training checkpoints of MAE, DINO and mmengine hold beside tensors and plain containers: data, no code.
DATA_TYPES: list[Any] = [
    argparse.Namespace,
    (LoggedScalar, "mmengine.logging.history_buffer.HistoryBuffer"),
    (dict, "mmengine.config.config.ConfigDict"),
    *((_no_attribute, f"{module}.getattr") for module in ("builtins", "__builtin__")),
    np.ndarray,
    np.dtype,
    *{
        type(np.dtype(name))
        for name in ("?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "e", "f", "d", "U", "S")
    },
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_file(path: str | Path) -> Mapping[str, object]:
    """The raw contents of a checkpoint, nested as they are; nothing in it is executed.

    Args:
        path: ``.safetensors``; ``.pkl`` as detectron2 writes them, whose numpy arrays become tensors; or anything that
            ``torch.save`` wrote.

    Raises:
        UserError: if the file is missing, empty, truncated, not a checkpoint, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Checkpoint {path} does not exist: give the path of a .pth, .pt, .pkl or .safetensors file.")
    if path.stat().st_size == 0:
        raise UserError(f"Checkpoint {path} is empty (0 bytes): write or download it again.")
    _refuse_other_formats(path)
    try:
        state = _read(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)", str(error))
        if found is None:
            raise UserError(
                f"{path} is not a readable checkpoint, or it is truncated: expected what torch.save, safetensors or "
                "detectron2 wrote. Write or download it again."
            ) from None
        raise UserError(
            f"Checkpoint {path} holds {found[1]}, which is code and is not run. Save its state_dict() alone, where it "
            "comes from."
        ) from None
    except UserError:
        raise
    except Exception as error:
        told = str(error) and not isinstance(error, KeyError)  # of the unpickler's memory, which says nothing
        reason = str(error).splitlines()[0] if told else type(error).__name__
        raise UserError(
            f"{path} is not a readable checkpoint, or it is truncated ({reason}). Write or download it again."
        ) from None
    if path.suffix == ".safetensors" and "adpe.tokenizer" in read_metadata(path, {}):
        raise UserError(f"{path} is a file of tokens or parts, which tokenizer= and parts= take, and not an encoder.")
    if not isinstance(state, Mapping):
        raise UserError(f"Checkpoint {path} holds a {type(state).__name__}, expected a dict of tensors.")
    return state


def _refuse_other_formats(path: Path) -> None:
    """Raise UserError for whole files that are no checkpoint, by their first bytes or, of zips, their members."""
    with open(path, "rb") as file:
        head = file.read(64)
    names: list[str] = []
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:  # the reader says that it is damaged
            names = archive.namelist()
    # An ONNX file is a protobuf message: field 1 is the version of its format, then comes the producer or the graph.
    message = head[:1] == b"\x08" and head[1:2] < b"\x20" and path.suffix != ".safetensors"
    if message and (head[2:3] in (b"\x12", b"\x3a") or path.suffix == ".onnx"):
        kind, remedy = "an ONNX graph", "Take the checkpoint that it was exported from."
    elif any(name.split("/")[1:2] == ["constants.pkl"] for name in names):
        kind, remedy = "a TorchScript program", "Take the state_dict() that it was made of."
    elif names and all(name.endswith(".npy") for name in names):
        kind, remedy = "a NumPy archive", "Convert it to PyTorch first, as timm does with those of JAX."
    else:
        found = next((said for start, said in _OTHER_FORMATS.items() if head.lstrip().lower().startswith(start)), None)
        if found is None:
            return
        kind, remedy = found
    raise UserError(f"{path} is {kind}, expected what torch.save, safetensors or detectron2 wrote. {remedy}")


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        require("safetensors", "requirements/runtime.txt")
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        refuse_bomb(path)
    elif path.suffix in PICKLES:
        with open(path, "rb") as file:
            _refuse_large_memo(file)
            file.seek(0)
            return _tensors(_ArrayUnpickler(file, encoding="latin1").load())
    with torch.serialization.safe_globals(DATA_TYPES):
        return torch.load(path, map_location="cpu", weights_only=True)


def refuse_bomb(path: Path) -> None:
    """Raise UserError if the members of a zip are together larger than it is: ``torch.save`` does not compress."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise UserError(
            f"Checkpoint {path} unpacks to {unpacked} bytes, more than it has: refused as a decompression bomb. Save "
            "it with torch.save, which does not compress."
        )


def _refuse_large_memo(file: IO[bytes]) -> None:
    """Raise UnpicklingError for an index that no pickle of this length needs, and that memory would be taken for."""
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > int(position or 0):
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position}")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers. Every other global raises `pickle.UnpicklingError` with its name."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _latin1,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        for core in ("numpy.core", "numpy._core"):
            allowed[f"{core}.multiarray", "_reconstruct"] = _empty_array
            allowed[f"{core}.multiarray", "scalar"] = _scalar
            allowed[f"{core}.numeric", "_frombuffer"] = _array_of_buffer
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"global {module}.{name}")
        return allowed[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    """What pickle protocol 2 spells bytes with; other codecs could decompress without bounds."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"global _codecs.encode({encoding!r})")
    return text.encode("latin1")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"global {kind!r} of shape {shape}")
    return _reconstruct(np.ndarray, (0,), b"b")


def _array_of_buffer(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _tensors(value: object) -> object:
    """`value` with its numeric arrays as tensors."""
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        native = value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, dtype=native, order="C"))
    return value


def read_metadata(path: str | Path, raw: Mapping[str, object]) -> dict[str, object]:
    """What stands beside the tensors of a checkpoint: strings of ``.safetensors``, ``meta`` and plain values of others.

    Args:
        raw: of :func:`read_file`.

    Raises:
        UserError: if the header of a ``.safetensors`` file cannot be read.
    """
    if Path(path).suffix != ".safetensors":
        meta = raw.get("meta")
        plain = {str(key): value for key, value in raw.items() if isinstance(value, (str, int, float))}
        return {**plain, **{str(key): value for key, value in (meta if isinstance(meta, Mapping) else {}).items()}}
    require("safetensors", "requirements/runtime.txt")
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"{path}: its header cannot be read ({reason}). Write or download it again.") from None


def training_config(raw: Mapping[str, object]) -> dict[str, Any]:
    """``model`` and ``train_dataloader`` of the config that a training checkpoint carries as text in its ``meta``.

    The text is parsed as literals and calls of ``dict``; nothing in it is executed. What cannot be parsed, or is no
    dict, is left out.

    Args:
        raw: of :func:`read_file`.
    """
    meta = raw.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return {}
    found: dict[str, Any] = {}
    try:
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                continue
            name = node.targets[0].id
            if name in ("model", "train_dataloader"):
                value = ast.literal_eval(_DictCalls().visit(node.value))
                if isinstance(value, dict):
                    found[name] = value
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return found


def read_model_config(path: str | Path) -> dict[str, Any] | None:
    """The ``model`` of :func:`training_config`; None if the checkpoint has none.

    Raises:
        UserError: as :func:`read_file`.
    """
    return training_config(read_file(path)).get("model")


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` to ``{"a": 1}``, as ``ast.literal_eval`` wants it."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != "dict" or node.args:
            return node
        keys: list[ast.expr | None] = [ast.Constant(keyword.arg) if keyword.arg else None for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def build_model(path: str | Path, model: str | None = None, **options: Any) -> PretrainingMethod | VisionTransformer:
    """The model that a training checkpoint was made with, randomly initialised; :func:`adpe.load_checkpoint` loads it.

    For an encoder alone, of any file, see :func:`adpe.load_encoder`.

    Args:
        path: a training checkpoint, which knows its model; any other one with `model`.
        model: name of a size, e.g. ``adpe_vit_base_patch16``, instead of what the checkpoint says.
        options: of the model; they go before what the checkpoint says.

    Returns:
        the method of a pretraining checkpoint, the encoder of one of a dense task.

    Raises:
        UserError: if the checkpoint cannot be read or does not say of which model it is, or for wrong options.
    """
    config = {} if model else read_model_config(path) or {}
    backbone = config.get("backbone")
    said = {key: value for key, value in (backbone or config).items() if key not in NOT_THE_NETWORK}
    name = model or said.pop("model", None)
    if not isinstance(name, str):
        raise UserError(
            f"{path} does not say of which model it is: take a training checkpoint, which does, or give --model, e.g. "
            "--model adpe_vit_base_patch16 --set position=relative adversary=coordinate."
        )
    said |= options
    if said.get("pos_embed_resize") == "resample":  # its name in earlier versions
        said["pos_embed_resize"] = "timm"
    try:
        if backbone:
            return create_encoder(name, **said)
        method = said.pop("method", None) or autoencoder_of(said)
        return create_method(method, name, **said)
    except (TypeError, ValueError) as error:
        raise UserError(f"No model can be built of {name} and {said}: {error}") from None
