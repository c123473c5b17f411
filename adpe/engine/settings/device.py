"""What a config needs on the device and in the processes that it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config


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
