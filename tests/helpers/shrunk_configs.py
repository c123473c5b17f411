"""Every training config at a width and depth that a CPU trains in a moment, and two of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from built_configs import config
from frozen_encoders import tokenizer_file
from mmengine.config import Config
from trainable import batch

SMALL = {"embed_dim": 32, "num_heads": 2}
NARROW = {
    "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2,
    "predictor_embed_dim": 32, "predictor_depth": 1, "prototypes": 64, "patch_prototypes": 32,
    "hidden": 32, "bottleneck": 16,
}  # fmt: skip
GC_VIT = {"variant": None, "dim": 16, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8), "window_size": 4}
GC_VIT_CHANNELS = [16, 32, 64, 128]
SP_VIT = {"variant": None, "embed_dim": 32, "depth": 4, "num_heads": 2, "stem": 8, "prior_blocks": 2, "img_size": 64}
RESNET = {"radius": 5, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]}
VIT_VQ = {"dim": 32, "depth": 1, "num_heads": 2, "head_dim": 16, "codes": 16, "img_size": 32}
SEQUENCE = {"dim": 32, "num_heads": 2, "encoder_blocks": 1, "decoder_blocks": 1}


def shrunk(name: str, folder: Path) -> tuple[Config, Any]:
    """A config at about 2 blocks of width 32, and two of its images.

    Args:
        name: of the config.
        folder: for the files of frozen models that some methods take.
    """
    cfg = config(name)
    if cfg.default_scope == "mmengine":
        data = _pretraining(cfg, folder) if cfg.model.type == "AdPEPretraining" else _classification(cfg)
    elif name.startswith("configs/demo"):
        data = batch(cfg, 48)
    else:
        data = (_segmentation if cfg.default_scope == "mmseg" else _detection)(cfg)
    return cfg, data


def _classification(cfg: Config) -> dict[str, Any]:
    if cfg.model.type == "AdPENetworkClassifier":
        # Two blocks in the last stage: its queries are those of a global one.
        networks = {"gcvit": {**GC_VIT, "depths": (1, 1, 1, 2)}, "spvit": {**SP_VIT, "img_size": cfg.image_size}}
        cfg.model.update(networks[cfg.model.network])
    else:
        cfg.model.update(**SMALL, depth=2)
    if cfg.model.get("mixup_batch"):
        cfg.model.mixup_batch = 2
    labels = {"label": torch.tensor([0, 1]), "index": torch.arange(2), "img_path": ["a", "b"]}
    return {"inputs": torch.randn(2, 3, cfg.image_size, cfg.image_size), "data_samples": labels}


def _pretraining(cfg: Config, folder: Path) -> dict[str, Any]:
    model, dataset = cfg.model, cfg.train_dataloader.dataset
    if model.model.startswith("adpe_"):
        model.update(**SMALL, depth=2)
    model.update({key: value for key, value in NARROW.items() if key in model or key in _hidden(model)})
    if dataset.type == "AdPEMultiBandDataset":
        sides = [(2, dataset.views.global_size), (2, dataset.views.local_size)]
        return {"inputs": [torch.rand(2, count, 14, side, side) for count, side in sides]}
    if isinstance(dataset.crops, list):
        sizes = [group.size for group in dataset.crops]
        return {"inputs": [torch.randint(0, 256, (2, 2, 3, side, side), dtype=torch.uint8) for side in sizes]}
    crops, texts = dataset.crops, []
    if model.get("method") == "sequence":
        model.update(SEQUENCE, tokenizer=_autoencoder(folder, model.img_size))
        texts = [torch.ones(2, model.text_tokens, dtype=torch.long)]
    elif model.get("method") == "vitvq":
        model.update(VIT_VQ)
        crops.size = 32
    elif {"tokenizer", "parts"} & {*model}:
        patch = 4 if "patch4" in model.model else 16
        role = "tokenizer" if "tokenizer" in model else "parts"
        model.update({role: str(tokenizer_file(folder, 4, patch_size=patch)), "img_size": 32})
        model.update({key: value for key, value in {"vocabulary": 4, "least": 1}.items() if key in model})
        crops.size = 32
    elif not model.model.startswith("adpe_"):
        crops.size = 64
        model.update(RESNET)
    images = torch.randint(0, 256, (2, crops.num_crops, 3, crops.size, crops.size), dtype=torch.uint8)
    return {"inputs": [images, *texts] if texts else images}


def _hidden(model: Any) -> tuple[str, ...]:
    """Options of heads that a config with prototypes leaves at their defaults."""
    return ("hidden", "bottleneck") if "prototypes" in model else ()


def _autoencoder(folder: Path, img_size: int) -> str:
    from adpe.methods.parti.vitvq import ViTVQ
    from adpe.methods.targets.tokenizers import save_autoencoder

    torch.manual_seed(0)
    model = ViTVQ(img_size, 4, 32, 1, 2, 16, None, 8, 4, codebook="moving")
    model.used.fill_(1)
    save_autoencoder(folder / "tokenizer.safetensors", model)
    return str(folder / "tokenizer.safetensors")


def _segmentation(cfg: Config) -> dict[str, Any]:
    model = cfg.model
    model.data_preprocessor.size = (64, 64)
    if model.type == "AdPEEoMT":
        model.backbone.update(**SMALL, depth=4, img_size=64)
        model.update(num_queries=5, window=(64, 64), joined_blocks=2)
        model.criterion.num_points = 64
    elif model.backbone.type == "AdPEGCViT":
        model.backbone.update(GC_VIT)
        model.decode_head.update(in_channels=GC_VIT_CHANNELS, channels=16)
        model.auxiliary_head.update(in_channels=GC_VIT_CHANNELS[2], channels=16)
    elif model.backbone.type == "AdPESPViT":
        model.backbone.update(**SP_VIT, out_indices=(0, 1, 2, 3))
        model.neck.embed_dim = 32
        model.decode_head.update(in_channels=[32] * 4, channels=16)
        model.auxiliary_head.update(in_channels=32, channels=16)
    elif model.decode_head.type in ("AdPELinearSegmentationHead", "FCNHead"):
        model.backbone.update(**SMALL, depth=4, img_size=64)
        # The class token stands beside every patch.
        model.decode_head.in_channels = 64 if model.backbone.get("out_type") == "featmap_cls" else 32
        if model.decode_head.type == "FCNHead":
            model.decode_head.channels = 32
        else:
            model.backbone.out_indices = "last"
    else:
        model.backbone.update(**SMALL, depth=4, img_size=64, out_indices=(0, 1, 2, 3))
        model.neck.embed_dim = 32
        model.decode_head.update(in_channels=[32] * 4, channels=16)
        model.auxiliary_head.update(in_channels=32, channels=16)
    return batch(cfg, 64)


def _detection(cfg: Config) -> dict[str, Any]:
    cfg.model.data_preprocessor.pad_size_divisor = 64
    if cfg.model.backbone.type == "AdPEGCViT":
        cfg.model.backbone.update(GC_VIT)
        cfg.model.neck.update(in_channels=GC_VIT_CHANNELS, out_channels=32)
    elif cfg.model.backbone.type == "AdPESPViT":
        cfg.model.backbone.update(SP_VIT)
        cfg.model.neck.update(in_channels=32, out_channels=32)
    else:
        cfg.model.backbone.update(**SMALL, img_size=64, depth=2, global_attn_indexes=(1,))
        cfg.model.neck.update(in_channels=32, out_channels=32)
    cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
    roi_head = cfg.model.roi_head
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
    for head in [*heads, roi_head.mask_head]:
        head.update(in_channels=32, conv_out_channels=32)
    for head in heads:
        head.fc_out_channels = 32
    for extractor in (roi_head.bbox_roi_extractor, roi_head.mask_roi_extractor):
        extractor.out_channels = 32
    return batch(cfg, 64)
