"""What a config needs on the device and in the processes that it runs on, and where its images are cropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from adpe.data.multicrop import MultiCrop
from adpe.errors import UserError


def fit_to_device(cfg: Config, launcher: str, log: Callable[[str], None]) -> None:
    """What several processes or a CPU need: plain BatchNorm, and a model wrapper without GPU numbers."""
    if launcher == "none" or not torch.cuda.is_available():
        count = _replace_sync_bn(cfg.model)
        if count:
            log(f"SyncBN needs several GPUs: {count} norm_cfg of the model use BN instead")
    if cfg.get("sync_bn") and not torch.cuda.is_available():
        if launcher != "none":
            log(f"sync_bn={cfg.sync_bn} needs GPUs: each process has BatchNorms of its own")
        cfg.sync_bn = None
    if launcher != "none" and not torch.cuda.is_available():
        wrapper = cfg.get("model_wrapper_cfg") or {
            "type": "MMDistributedDataParallel",
            "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
        }
        cfg.model_wrapper_cfg = {**wrapper, "device_ids": None}


def crop_on_device(cfg: Config) -> None:
    """Let the device crop what a pretraining's data set has decoded (`cache`), where there is a GPU.

    ``train_dataloader.dataset.crop_on`` decides if the config sets it. The crops are the same in every bit.

    Raises:
        UserError: for ``crop_on="device"`` with another preprocessor than `AdPECropsPreprocessor`.
    """
    dataset = cfg.train_dataloader.get("dataset")
    if not isinstance(dataset, dict) or dataset.get("type") != "AdPEImageDataset":
        return
    crops = dataset.get("crops") or {}
    groups = [MultiCrop(**group) for group in (crops if isinstance(crops, (list, tuple)) else [crops])]
    preprocessor = {"type": "AdPECropsPreprocessor", **(cfg.model.get("data_preprocessor") or {})}
    known = preprocessor["type"] == "AdPECropsPreprocessor"
    if "crop_on" not in dataset:
        others = any(dataset.get(name) for name in ("maps", "captions", "labels"))
        plain = all(g.resize == "torch" and g.normalize == "device" and not any(g.colors) for g in groups)
        if not (dataset.get("cache") and torch.cuda.is_available() and known and plain and not others):
            return
        dataset["crop_on"] = "device"
    if dataset["crop_on"] == "device":
        if not known:
            raise UserError(
                f"train_dataloader.dataset.crop_on='device' needs model.data_preprocessor AdPECropsPreprocessor, got "
                f"{preprocessor['type']}."
            )
        preprocessor["crops"] = [{"size": group.size, "interpolation": group.interpolation} for group in groups]
        cfg.model.data_preprocessor = ConfigDict(preprocessor)


def _replace_sync_bn(node: Any) -> int:
    count = 0
    if isinstance(node, dict):
        if node.get("type") in ("SyncBN", "SyncBatchNorm", "MMSyncBN"):
            node["type"] = "BN"
            count += 1
        count += sum(_replace_sync_bn(value) for value in node.values())
    elif isinstance(node, (list, tuple)):
        count += sum(_replace_sync_bn(value) for value in node)
    return count
