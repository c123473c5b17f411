"""Compare speed with peers that compute the same, in one run and as ratios.

    python benchmarks/speed/pretraining_speed.py pretrain --model adpe_vit_base_patch16 --images 8 --crops 4 --size 112
    python benchmarks/speed/pretraining_speed.py transfer --depth 2 --steps 3

`transfer` is described in transfer_speed.py. `pretrain` compares with a plain eager implementation: a step is
forward, backward and the optimiser step of both players. For every variant both implementations first have to give
the same loss and gradients in float32; then their steps alternate, and ratios are medians over such pairs, because
machines drift. All contestants of a ratio compute in the same dtype unless its column names two.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from adpe.methods.factory import create_model
from adpe.methods.mae import MAE
from adpe.parity.cases import relative_error
from benchmarks.speed.machine import header, matmul_ceiling, peak_memory, pick_clock
from benchmarks.speed.reference_model import PlainAutoencoder


class Variant(NamedTuple):
    """A method: options of :func:`adpe.create_model`, and the ratio to the plain implementation that is aimed at."""

    position: str
    adversary: str | None
    target: float


VARIANTS = {
    "absolute": Variant("absolute", None, 1.2),
    "absolute embedding": Variant("absolute", "embedding", 1.2),
    "absolute coordinate": Variant("absolute", "coordinate", 1.2),
    "relative": Variant("relative", None, 1.5),
    "relative embedding": Variant("relative", "embedding", 1.5),
    "relative interpolated": Variant("relative_interpolated", None, 1.5),
    "relative coordinate": Variant("relative_interpolated", "coordinate", 3.0),
}
RELATIVE_COST = 0.15
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
NOISE = 1e-6  # gradients this far below the largest of the model are rounding


class Step:
    """One training step of a model on a fixed batch.

    Args:
        model: called with images and noise, returns the loss.
        images: ``(B, 3, H, W)``.
        noise: ``(B, L)``.
        dtype: torch.bfloat16 for autocast, or torch.float32.
        fused: one fused AdamW kernel instead of a loop over the parameters.
    """

    def __init__(
        self, model: MAE | PlainAutoencoder, images: Tensor, noise: Tensor, dtype: torch.dtype, fused: bool
    ) -> None:
        self.model, self.images, self.noise, self.dtype = model, images, noise, dtype
        groups = model.parameter_groups(1.5e-4, 0.05, adversary_lr=1.5e-4)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=fused, foreach=False)

    def __call__(self) -> None:
        with torch.autocast(self.images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(self.images, self.noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        adversary = getattr(self.model, "adversary", None)
        if adversary is not None:
            adversary.project()


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; the exit status is 1 if the implementations disagree, 2 for options that cannot be."""
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    if not console.is_terminal:
        console.width = 140
    return pretrain(arguments, console) if arguments.command == "pretrain" else transfer(arguments, console)


def transfer(arguments: argparse.Namespace, console: Console) -> int:
    """See :mod:`benchmarks.speed.transfer_speed`."""
    from benchmarks.speed import transfer_speed

    try:
        return transfer_speed.run(arguments, console)
    except ValueError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}")
        return 2


def pretrain(arguments: argparse.Namespace, console: Console) -> int:
    """Compare every pretraining method with the plain implementation."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    ceiling = matmul_ceiling(device, dtype)
    console.print(header(device, dtype, ceiling), highlight=False)
    console.print(
        f"{arguments.model}: {arguments.images} images x {arguments.crops} crops of {arguments.size} px, "
        f"{arguments.steps} steps of each in turn, after one to warm up",
        highlight=False,
    )
    table = Table(title="A training step of both players; ratios are plain time over ours, medians (least-most)")
    for column in columns(arguments.compile, dtype):
        table.add_column(column, justify="left" if column == "variant" else "right")
    agreed = True
    for name in arguments.variants or VARIANTS:
        try:
            row, verdict, agrees = compare(name, arguments, ceiling)
        except ValueError as error:
            Console(stderr=True).print(f"[red]error:[/red] {error}")
            return 2
        console.print(verdict, highlight=False)
        table.add_row(*[row.get(str(column.header), "-") for column in table.columns])
        agreed &= agrees
        gc.collect()
    console.print(table)
    return int(not agreed)


def compare(name: str, arguments: argparse.Namespace, ceiling: float) -> tuple[dict[str, str], str, bool]:
    """Check and time one variant: its cells of the table, a line on its target, whether the implementations agree."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    crops = arguments.images * arguments.crops
    images = torch.randn(crops, 3, arguments.size, arguments.size, device=device)

    def model(variant: str) -> MAE:
        return build(arguments.model, VARIANTS[variant], arguments.size).to(device)

    ours = model(name)
    plain = PlainAutoencoder(ours)
    h, w = ours.encoder.patch_embed.grid(images)
    noise = torch.rand(crops, h * w, device=device)
    loss_error, gradient_error = disagreement(ours, plain, images, noise)
    errors = f"{loss_error:.0e} {gradient_error:.0e}"
    if not (loss_error <= LOSS_TOLERANCE and gradient_error <= GRADIENT_TOLERANCE):
        remark = f"[red]{name}: the implementations disagree[/], loss and gradients by {errors}"
        return {"variant": name, "loss, grad error": f"[red]{errors}[/]"}, remark, False
    contestants = {
        "plain": Step(plain, images, noise, dtype, fused=False),
        "ours": Step(ours, images, noise, dtype, fused=True),
    }
    if dtype != torch.float32:
        contestants["plain float32"] = Step(plain, images, noise, torch.float32, fused=False)
    if arguments.compile:
        compiled = model(name)
        for block in [*compiled.encoder.blocks, *compiled.decoder.blocks]:
            block.compile()
        contestants["compiled"] = Step(compiled, images, noise, dtype, fused=True)
    if VARIANTS[name].position != "absolute":
        contestants["absolute"] = Step(model("absolute"), images, noise, dtype, fused=True)
    for step in contestants.values():
        step()
    memory = {side: peak_memory(contestants[side], device) for side in ("plain", "ours")}
    times = alternate(contestants, arguments.steps, device)
    row, verdict = report(name, times, memory, errors)
    seconds = median(times["ours"])
    row["crops/s"] = f"{crops / seconds:.1f}"
    row["of matmul"] = f"{matmul_flops(ours, crops, h * w) / seconds / ceiling:.0%}"
    return row, verdict, True


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from benchmarks.speed import transfer_speed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pretrain", help="training steps of every pretraining method")
    command.add_argument("--images", type=int, default=8, help="images per batch (default: 8)")
    command.add_argument("--crops", type=int, default=4, help="crops an image (default: 4)")
    command.add_argument("--size", type=int, default=112, help="pixels of a crop (default: 112)")
    command.add_argument("--compile", action="store_true", help="also our blocks through torch.compile")
    command.add_argument("--variants", nargs="+", choices=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    other = commands.add_parser(
        "transfer",
        help="the encoder at 512 and 1024 pixels, and training steps around it",
        description=transfer_speed.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    transfer_speed.add_arguments(other)
    for one in (command, other):
        one.add_argument("--model", default="adpe_vit_base_patch16")
        one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        one.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both sides; autocast")
        one.add_argument("--steps", type=int, default=5, help="timed steps of every contestant (default: 5)")
        one.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own)")
    arguments = parser.parse_args(argv)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: this machine has no CUDA device that torch can use")
    return arguments


def columns(compile: bool, dtype: torch.dtype) -> list[str]:
    """Headers of the table."""
    optional = ["compiled"] * compile + ["bf16 over float32"] * (dtype != torch.float32)
    return [
        "variant", "plain s", "ours s", "ratio", *optional, "over absolute", "plain GiB", "ours GiB", "crops/s",
        "of matmul", "loss, grad error",
    ]  # fmt: skip


def build(model: str, variant: Variant, size: int) -> MAE:
    """A model in which whatever starts at zero does not, so that every term of the equations acts."""
    torch.manual_seed(0)
    built = create_model(model, position=variant.position, adversary=variant.adversary, img_size=size)
    with torch.no_grad():
        for parameter in built.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return built


def disagreement(ours: nn.Module, plain: nn.Module, images: Tensor, noise: Tensor) -> tuple[float, float]:
    """Relative error of our loss, and the largest of our gradients, each over its tensor's largest magnitude."""
    losses = []
    for model in (ours, plain):
        model.zero_grad()
        losses.append(model(images, noise))
        losses[-1].backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    if theirs.keys() != mine.keys():
        return relative_error(losses[0], losses[1]), float("inf")
    floor = NOISE * max(gradient.abs().max().item() for gradient in theirs.values())
    error = max(
        (mine[name] - gradient).abs().max().item() / max(gradient.abs().max().item(), floor)
        for name, gradient in theirs.items()
    )
    ours.zero_grad()
    plain.zero_grad()
    return relative_error(losses[0], losses[1]), error


def alternate(
    contestants: Mapping[str, Callable[[], None]], steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every step; the contestants take turns."""
    clock = pick_clock(device)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(steps):
        for name, step in contestants.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return times


def report(
    name: str, times: dict[str, list[float]], memory: dict[str, float | None], errors: str
) -> tuple[dict[str, str], str]:
    """Cells of a variant by header, and a line that compares it with its target."""

    def ratio(slow: str, quick: str) -> list[float]:
        return [a / b for a, b in zip(times[slow], times[quick], strict=True)]

    def spread(values: list[float]) -> str:
        return f"{median(values):.2f}x ({min(values):.2f}-{max(values):.2f})"

    reached, target = median(ratio("plain", "ours")), VARIANTS[name].target
    row = {
        "variant": name,
        "plain s": f"{median(times['plain']):.3f}",
        "ours s": f"{median(times['ours']):.3f}",
        "ratio": spread(ratio("plain", "ours")),
        "plain GiB": "-" if memory["plain"] is None else f"{memory['plain']:.2f}",
        "ours GiB": "-" if memory["ours"] is None else f"{memory['ours']:.2f}",
        "loss, grad error": errors,
    }
    verdict = f"{name}: {reached:.2f}x, aimed at {target}x: {met(reached >= target)}"
    if "compiled" in times:
        row["compiled"] = spread(ratio("plain", "compiled"))
    if "plain float32" in times:
        row["bf16 over float32"] = spread(ratio("plain float32", "ours"))
    if "absolute" in times:
        cost = median(ratio("ours", "absolute")) - 1
        row["over absolute"] = f"{cost:+.1%}"
        verdict += f"; {cost:+.1%} over absolute positions, at most {RELATIVE_COST:.0%}: {met(cost <= RELATIVE_COST)}"
    return row, verdict


def median(values: list[float]) -> float:
    """As a plain number."""
    return float(np.median(values))


def met(condition: bool) -> str:
    """Coloured word."""
    return "[green]met[/]" if condition else "[yellow]missed[/]"


def matmul_flops(model: MAE, crops: int, patches: int) -> float:
    """Floating-point operations of the matrix products that MAE+ needs in a step; relative terms are left out.

    The backward pass has two products for each of the forward pass, but none for the gradient of the images.
    """

    def blocks(stage: nn.Module, width: int) -> int:
        tokens = 1 + patches
        return len(stage.blocks) * (12 * tokens * width**2 + 2 * tokens**2 * width)  # type: ignore[arg-type]

    encoder, decoder = model.encoder, model.decoder
    hidden = patches - int(patches * (1 - model.mask_ratio))
    products = blocks(encoder, encoder.embed_dim) + blocks(decoder, decoder.embed.out_features)
    products += (1 + patches) * decoder.embed.weight.numel() + hidden * decoder.pred.weight.numel()
    embedding = patches * encoder.patch_embed.proj.weight.numel()
    return 2.0 * crops * (3 * products + 2 * embedding)


if __name__ == "__main__":
    raise SystemExit(main())
