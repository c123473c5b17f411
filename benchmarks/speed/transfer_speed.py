"""Compare the encoder in transfer with its peers: timm's ViT, mmsegmentation's MAE, ViTDet's attention as published.

    python benchmarks/speed/pretraining_speed.py transfer    # ViT-B, 512 and 1024 pixels
    python benchmarks/speed/pretraining_speed.py transfer --depth 2 --steps 3 --global-blocks 1  # minutes on a CPU
    python benchmarks/speed/pretraining_speed.py transfer --cases upernet maskrcnn --images 2  # training steps

Both sides have the same weights and first have to give the same features and gradients in float32. A step is forward
and backward; for the two configs, the loss of the whole model on random truth and the optimizer's step too. Steps
alternate, ratios are medians over pairs, the peer's over ours; the one of memory is ours over the peer's. "of matmul"
is our rate, of the matrix products alone, as a share of one large product's. The peers run eagerly, as they do in their
frameworks; drop path is off. timm's attention is fused as ours is: nothing is to be gained there, only lost.
"""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adpe.models.factory import create_encoder
from adpe.models.vit import VisionTransformer
from adpe.parity.cases import relative_error
from benchmarks.speed.machine import header, matmul_ceiling, peak_memory
from benchmarks.speed.pretraining_speed import GRADIENT_TOLERANCE, LOSS_TOLERANCE, NOISE, alternate, median, met
from benchmarks.speed.reference_encoder import PlainViTDet, TimmLastMap, mmseg_mae, to_mmseg_name

TARGET, MEMORY_TARGET = 1.5, 0.6
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Case(NamedTuple):
    """A comparison: options of our encoder, whose peer it is, the config around both, if any, and what is aimed at."""

    options: dict[str, Any]
    peer: str
    config: str | None = None
    target: float = TARGET
    memory_target: float = MEMORY_TARGET


VITDET = {"use_rel_pos": True, "class_token": False}
RECIPE = {"use_rel_pos_bias": True, "init_values": 1.0, "learned_pos_embed": True}
CASES = {
    "timm ViT": Case({}, "timm", target=0.95, memory_target=1.05),
    "mmseg MAE": Case({}, "mmseg"),
    "mmseg MAE, relative bias": Case(RECIPE, "mmseg"),
    "ViTDet": Case(VITDET, "vitdet"),
    "upernet": Case(RECIPE, "mmseg", "ade20k_upernet_vitb.py"),
    "maskrcnn": Case(VITDET, "vitdet", "coco_maskrcnn_vitb.py"),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `speed.py transfer`, beside those of every comparison."""
    command.add_argument("--images", type=int, default=1, help="images a batch (default: 1)")
    command.add_argument("--depth", type=int, help="blocks (default: the model's)")
    command.add_argument("--size", type=int, default=512, help="pixels for timm's ViT and mmseg's MAE (default: 512)")
    command.add_argument("--window-size", type=int, default=14, help="patches of ViTDet's windows (default: 14)")
    command.add_argument("--vitdet-size", type=int, default=1024, help="pixels for ViTDet (default: 1024)")
    command.add_argument(
        "--global-blocks", type=int, nargs="*", help="that ViTDet has (default: the last of each quarter)"
    )
    command.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES)[:4], metavar="NAME",
                         help=", ".join(CASES))  # fmt: skip


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Compare; the exit status is 1 if the implementations disagree."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    ceiling = matmul_ceiling(device, dtype)
    console.print(header(device, dtype, ceiling), highlight=False)
    names = (
        "case",
        "peer s",
        "ours s",
        "ratio",
        "of matmul",
        "peer GiB",
        "ours GiB",
        "of memory",
        "features, grad error",
    )
    table = Table(title="Forward and backward; peer's time over ours, our memory over the peer's: medians (least-most)")
    for name in names:
        table.add_column(name, justify="left" if name == "case" else "right")
    agreed = True
    for name in arguments.cases:
        row, agrees = compare(name, arguments, console, ceiling)
        table.add_row(*row)
        agreed &= agrees
        gc.collect()
    console.print(table)
    return int(not agreed)


def compare(name: str, arguments: argparse.Namespace, console: Console, ceiling: float) -> tuple[list[str], bool]:
    """Check and time one case against a `ceiling` in FLOP/s: its row, and whether the implementations agree."""
    case, device = CASES[name], torch.device(arguments.device)
    ours, peer = build(case, arguments)
    size = ours.img_size[0]
    images = torch.randn(arguments.images, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    feature_error, gradient_error = disagreement(ours, peer, images)
    errors = f"{feature_error:.0e} {gradient_error:.0e}"
    if not (feature_error <= LOSS_TOLERANCE and gradient_error <= GRADIENT_TOLERANCE):
        console.print(f"[red]{name}: the implementations disagree[/] by {errors}", highlight=False)
        return [name, *["-"] * 7, f"[red]{errors}[/]"], False
    dtype = getattr(torch, arguments.dtype)
    contestants: dict[str, Callable[[], None]]
    if case.config:
        contestants = training_steps(case.config, ours, peer, arguments)
    else:
        contestants = {
            "peer": lambda: encoder_step(peer, images, dtype),
            "ours": lambda: encoder_step(LastMap(ours), images, dtype),
        }
    for step in contestants.values():
        step()
    memory = {side: peak_memory(step, device) for side, step in contestants.items()}
    times = alternate(contestants, arguments.steps, device)
    ratios = [peer / mine for peer, mine in zip(times["peer"], times["ours"], strict=True)]
    verdict = f"{name}: {median(ratios):.2f}x, aimed at {case.target}x: {met(median(ratios) >= case.target)}"
    cells = ["-", "-", "-"]
    if memory["peer"] and memory["ours"] is not None:
        share = memory["ours"] / memory["peer"]
        cells = [f"{memory['peer']:.2f}", f"{memory['ours']:.2f}", f"{share:.2f}"]
        verdict += (
            f"; {share:.2f} of its peak memory, aimed at {case.memory_target}: {met(share <= case.memory_target)}"
        )
    console.print(verdict, highlight=False)
    spread = f"{median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
    share_of_ceiling = f"{counted_flops(contestants['ours']) / median(times['ours']) / ceiling:.0%}"
    seconds = [f"{median(times[side]):.3f}" for side in ("peer", "ours")]
    return [name, *seconds, spread, share_of_ceiling, *cells, errors], True


def counted_flops(step: Callable[[], None]) -> float:
    """Floating-point operations of a step's matrix products and convolutions, attention written out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def build(case: Case, arguments: argparse.Namespace) -> tuple[VisionTransformer, nn.Module]:
    """Our encoder, in which whatever starts at zero does not, and its peer."""
    torch.manual_seed(0)
    options = dict(case.options)
    if arguments.depth:
        options["depth"] = arguments.depth
    options["img_size"] = arguments.vitdet_size if case.peer == "vitdet" else arguments.size
    if case.peer == "vitdet":
        depth = arguments.depth or len(create_encoder(arguments.model).blocks)
        quarters = [depth * i // 4 - 1 for i in range(1, 5)] if depth >= 4 else [depth - 1]
        indexes = quarters if arguments.global_blocks is None else arguments.global_blocks
        options |= {"window_size": arguments.window_size, "global_attn_indexes": indexes}
    ours = create_encoder(arguments.model, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    ours.norm = nn.Identity()  # type: ignore[assignment]
    ours = ours.to(arguments.device).train()
    if case.peer == "vitdet":
        return ours, PlainViTDet(ours).train()
    if case.peer == "timm":
        return ours, TimmLastMap(ours).train()
    peer: Any = mmseg_mae(ours)
    peer.out_indices = [len(ours.blocks) - 1]
    peer.train()
    return ours, LastMap(peer)


class LastMap(nn.Module):
    """A backbone's last map."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, D, h, w)``."""
        if isinstance(self.backbone, VisionTransformer):
            last = [len(self.backbone.blocks) - 1]
            return self.backbone.forward_intermediates(images, indices=last, intermediates_only=True)[0]
        return self.backbone(images)[-1]


def encoder_step(model: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        features = model(images)
    features.float().square().mean().backward()
    model.zero_grad()


def disagreement(ours: VisionTransformer, peer: nn.Module, images: Tensor) -> tuple[float, float]:
    """Relative error of our last map, and the largest of our gradients, each over its tensor's largest magnitude."""
    features = []
    for model in (LastMap(ours), peer):
        model.zero_grad()
        y = model(images)
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.device)).sum().backward()
        features.append(y.detach())
    if isinstance(peer, (PlainViTDet, TimmLastMap)):
        theirs = {name: peer.weight(name).grad for name, _ in ours.named_parameters()}
    else:
        parameters = dict(peer.backbone.named_parameters())  # type: ignore[union-attr, operator]
        theirs = {name: parameters[to_mmseg_name(name)].grad for name, _ in ours.named_parameters()}
    gradients = {name: gradient for name, gradient in theirs.items() if gradient is not None}
    floor = NOISE * max(gradient.abs().max().item() for gradient in gradients.values())
    error = 0.0
    for name, parameter in ours.named_parameters():
        mine, other = parameter.grad, gradients.get(name)
        if mine is None or other is None:
            error = error if mine is other is None else float("inf")
            continue
        error = max(error, (mine - other).abs().max().item() / max(other.abs().max().item(), floor))
    ours.zero_grad()
    peer.zero_grad()
    return relative_error(*features), error


# Whole training steps --------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """A backbone among mmengine's models, which want `init_weights`."""

    def __init__(self, model: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.model, self.indices = model, indices

    def init_weights(self) -> None:
        """The weights are there."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the blocks `indices`, of which a shallow encoder may repeat some."""
        blocks = sorted({*self.indices})
        if isinstance(self.model, VisionTransformer):
            maps = self.model.forward_intermediates(images, indices=blocks, intermediates_only=True)
        else:
            maps = self.model(images)
            maps = [maps] if isinstance(maps, Tensor) else maps
        found = dict(zip(blocks, maps, strict=True))
        return tuple(found[i] for i in self.indices)


def training_steps(
    config: str, ours: VisionTransformer, peer: nn.Module, arguments: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    """A training step of a config's model around either backbone, on random images and truth."""
    from mmengine.optim import OptimWrapper
    from mmengine.registry import MODELS, DefaultScope

    from adpe.engine.config import read_config

    size, depth, width = ours.img_size[0], len(ours.blocks), ours.embed_dim
    segmentation = "upernet" in config
    if segmentation and arguments.images < 2:
        raise ValueError("UperNet's BatchNorm over one pixel a map needs two images: --images 2.")
    variable = "crop_size" if segmentation else "image_size"
    cfg = read_config(CONFIGS / config, {variable: (size, size)})
    indices = [max(depth * i // 12 - 1, 0) for i in (4, 6, 8, 12)] if segmentation else [depth - 1]
    backbones = {"peer": peer.backbone if isinstance(peer, LastMap) else peer, "ours": ours}
    steps: dict[str, Callable[[], None]] = {}
    for side, backbone in backbones.items():
        spec = copy.deepcopy(cfg.model)
        # Built without its backbone, a small one in its place.
        spec.backbone.update(depth=1, embed_dim=16, num_heads=2, out_indices=(0,), init_cfg=None)
        for key in ("window_size", "global_attn_indexes"):
            spec.backbone.pop(key, None)
        if segmentation:
            spec.neck.update(embed_dim=width, norm_cfg=dict(type="BN"))
            spec.decode_head.update(in_channels=[width] * 4, norm_cfg=dict(type="BN"))
            spec.auxiliary_head.update(in_channels=width, norm_cfg=dict(type="BN"))
            if side == "peer":
                backbone.out_indices = sorted({*indices})  # type: ignore[assignment]
        else:
            spec.neck.in_channels = width
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(spec)
        model.backbone = Backbone(backbone, indices)
        model = model.to(arguments.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=side == "ours", foreach=False)
        wrapper = OptimWrapper(optimizer)
        data = batch(cfg.default_scope, size, arguments.images, cfg.num_classes)
        steps[side] = _step(model, wrapper, data, arguments)
    return steps


def _step(model: Any, wrapper: Any, data: dict[str, list], arguments: argparse.Namespace) -> Callable[[], None]:
    dtype = getattr(torch, arguments.dtype)

    def step() -> None:
        with torch.autocast(torch.device(arguments.device).type, dtype, enabled=dtype != torch.float32):
            inputs = model.data_preprocessor(copy.deepcopy(data), True)
            loss, _ = model.parse_losses(model(**inputs, mode="loss"))
        wrapper.update_params(loss)

    return step


def batch(scope: str, size: int, images: int, num_classes: int) -> dict[str, list]:
    """Random images and truth, as a data loader hands them over."""
    from mmengine.structures import InstanceData, PixelData

    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for _ in range(images)]
    shapes = {**dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (size, size)), "scale_factor": (1.0, 1.0)}
    samples: list[Any] = []
    for index in range(images):
        if scope == "mmseg":
            from mmseg.structures import SegDataSample

            sample = SegDataSample()
            labels = torch.randint(0, num_classes, (1, size, size), generator=generator)
            sample.gt_sem_seg = PixelData(data=labels)
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            corners = torch.rand(8, 2, generator=generator) * size * 0.5
            boxes = torch.cat([corners, corners + size * (0.1 + 0.4 * torch.rand(8, 2, generator=generator))], dim=1)
            masks = torch.zeros(8, size, size, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
            sample = DetDataSample()
            labels = torch.randint(0, num_classes, (8,), generator=generator)
            truth = BitmapMasks(masks.numpy(), size, size)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=truth)
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample.set_metainfo({**shapes, "img_id": index})
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}
