"""`save_pretrained` and `from_pretrained`: encoders to and from folders and the Hugging Face hub.

What is read is data: safetensors and JSON. Weights that are pickled are not downloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from adpe.checkpoints.loading import check_values, describe_encoder, load_encoder, save_checkpoint
from adpe.checkpoints.names import Framework, from_our_names
from adpe.checkpoints.reading import read_file
from adpe.errors import UserError, require
from adpe.files import atomic_write
from adpe.leaderboard.records import read_records
from adpe.models.specification import ModelSpecification, specification_of
from adpe.models.vit import VisionTransformer
from adpe.sharing.card import check_records, model_card
from adpe.sharing.configs import configs_of, options_of, pretrained_cfg_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Frameworks whose folders can be written.
FOLDERS = ("adpe", *(name for name in get_args(Framework) if name.startswith("huggingface")))
_LARGEST_CONFIG = 2**20  # bytes
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def save_pretrained(
    encoder: VisionTransformer | str | Path,
    folder: str | Path,
    name: str | None = None,
    license: str | None = None,
    records: Iterable[str | Path] = (),
    framework: Framework = "adpe",
    overwrite: bool = False,
) -> Path:
    """Write an encoder as a folder for the Hugging Face hub: weights, config, and a model card.

    Args:
        encoder: file of an encoder. One as a pretraining writes it is copied byte by byte for ``"adpe"``, so that the
            hash that records have of it stays true. Or an encoder at hand, whose origin the card cannot tell.
        folder: to write.
        name: ``OWNER/NAME`` on the hub, for the card; default: the folder's name.
        license: of the weights, an identifier of the hub such as ``"cc-by-4.0"``.
        records: files of records (``record.jsonl``) of evaluations of this encoder, for the card. That of its own run
            is found beside it.
        framework: whose names the weights have: ``"adpe"``, which timm reads too (:func:`adpe.register_with_timm`), or
            ``"huggingface_vit"``, ``"huggingface_dinov2"``, ``"huggingface_vitmae"`` for transformers.
        overwrite: replace weights that are there.

    Returns:
        the folder.

    Raises:
        UserError: for a file that does not say what its encoder is, records of another encoder, an encoder that the
            framework cannot hold, or a folder that has weights already.
    """
    if framework not in FOLDERS:
        raise UserError(f"framework={framework!r}: expected one of {', '.join(FOLDERS)}.")
    folder = Path(folder)
    if (folder / WEIGHTS).exists() and not overwrite:
        raise UserError(f"{folder / WEIGHTS} exists: give another folder, or overwrite it (--overwrite).")
    said, state, own = _source(encoder)
    measured = check_records(_records(records), said)
    source = "the encoder" if isinstance(encoder, VisionTransformer) else str(encoder)
    if framework != "adpe":
        said = replace(said, layer_scale=framework == "huggingface_dinov2")  # of ones, or left out
    files = {key: json.dumps(text, indent=2) + "\n" for key, text in configs_of(said, framework).items()}
    files["README.md"] = model_card(name or folder.name, said, framework, license, own, measured)
    if framework != "adpe":
        state, _ = from_our_names(state, framework, said.pretrain_img_size[0], source)
        save_checkpoint(state, folder / WEIGHTS, {"format": "pt"}, said)
    elif source.endswith(".safetensors") and read_file(source).keys() == state.keys():
        with atomic_write(folder / WEIGHTS) as temporary:
            shutil.copyfile(source, temporary)
    else:
        save_checkpoint(state, folder / WEIGHTS, specification=said)
    for file, text in files.items():
        with atomic_write(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def from_pretrained(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    verbose: bool = True,
    **options: Any,
) -> VisionTransformer:
    """The encoder of a folder or of a model on the Hugging Face hub, built as it says and loaded.

    Read are what :func:`save_pretrained` writes, and ViT, DINOv2 (without registers and SwiGLU), ViTMAE, DeiT and BEiT
    of transformers and timm's ViT, in safetensors. ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_TOKEN``
    mean what they do to ``huggingface_hub``.

    Args:
        name: a folder, or ``OWNER/NAME``.
        revision: branch, tag or commit on the hub.
        cache_dir: of downloads; default: that of ``huggingface_hub``.
        verbose: print the load report.
        options: of :class:`adpe.VisionTransformer`, see :func:`adpe.load_encoder`.

    Returns:
        the encoder; its ``pretrained_cfg`` is timm's and has the normalisation, where that is known.

    Raises:
        UserError: if there is no such folder or model, it cannot be reached, has no safetensors, or holds no encoder
            that can be built; it says which file, and what to do.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = {file: folder / file if (folder / file).is_file() else None for file in (CONFIG, WEIGHTS)}
    elif _ID.fullmatch(str(name)):
        files = {file: _download(str(name), file, revision, cache_dir) for file in (CONFIG, WEIGHTS)}
    else:
        raise UserError(f"{name} is no folder, and no name of a model on the hub, which is OWNER/NAME.")
    weights = files[WEIGHTS]
    if weights is None:
        raise UserError(
            f"{name} has no {WEIGHTS}, the one kind of weights that is read from a hub: others can hold code. Download "
            "it yourself, and give its path to adpe.load_encoder, which reads pickles without running them."
        )
    said = options_of(_read_config(files[CONFIG]), str(files[CONFIG])) if files[CONFIG] else {}
    described = describe_encoder(weights)
    missing = {key: value for key, value in said.items() if not described.known(key)}
    encoder = load_encoder(weights, verbose, **{**missing, **options})
    if described.specification.mean is not None:
        encoder.pretrained_cfg = pretrained_cfg_of(described.specification)  # type: ignore[assignment]
    return encoder


def _source(
    encoder: VisionTransformer | str | Path,
) -> tuple[ModelSpecification, dict[str, Tensor], dict[str, Any] | None]:
    """The specification of an encoder, its tensors by our names, and the record of the run that made it."""
    if isinstance(encoder, VisionTransformer):
        said, model, own = specification_of(encoder), encoder, []
    else:
        path = Path(encoder)
        described = describe_encoder(path)
        if not described.carried:
            raise UserError(
                f"{path} does not carry the specification of its encoder: write one that does with "
                f"tools/convert_checkpoint.py {path} encoder.safetensors --to adpe, and share that."
            )
        said, model = described.specification, load_encoder(path, verbose=False)
        beside = path.parent / "record.jsonl"
        records = read_records(beside)[0] if beside.is_file() else []
        own = [one for one in records if one["task"] == "pretrain" and one.get("config_sha256") == said.config_sha256]
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        check_values(name, tensor, "the encoder")
    return said, state, own[-1] if own else None


def _records(files: Iterable[str | Path]) -> list[dict[str, Any]]:
    found = []
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"{file} does not exist: expected a file of records, such as work_dirs/.../record.jsonl.")
        records, faults = read_records(file)
        if faults:
            raise UserError(f"{faults[0]}. A card is made of whole records.")
        found += records
    return found


def _download(name: str, file: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """A file of a model on the hub, in the cache; None if the model does not have it."""
    hub = require("huggingface_hub", "requirements/runtime.txt")
    from huggingface_hub import errors

    where = f"{name}{f' at {revision}' if revision else ''} on {os.environ.get('HF_ENDPOINT', 'the Hugging Face hub')}"
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision, cache_dir=cache_dir))
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{where}: {file} is not in the cache and cannot be downloaded, for want of a network or because of "
            f"HF_HUB_OFFLINE. Give a folder, or download it first. {name} is no folder here either."
        ) from error
    except errors.EntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{where}: there is no such model or revision, or it is private (HF_TOKEN). {name} is no folder here "
            "either."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{where}: {file} cannot be downloaded ({str(error).partition(chr(10))[0][:200]}).") from error


def _read_config(path: Path | None) -> Mapping[str, Any]:
    """The contents of a ``config.json`` that a stranger wrote."""
    if path is None:
        return {}
    size = path.stat().st_size
    if size > _LARGEST_CONFIG:
        raise UserError(f"{path} has {size} bytes, expected JSON of at most {_LARGEST_CONFIG}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({str(error).partition(chr(10))[0][:120]}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, expected a JSON object.")
    return config
