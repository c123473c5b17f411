"""DINOv3's linear segmentation probe against numbers recorded from its evaluation code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adpe.data.views.probe_augmentation import crop_offset, distort, resized_size
from adpe.errors import UserError
from adpe.evaluations.heads.linear_head import LinearHead, pixel_loss, slide_logits, stretch
from adpe.methods.schedules import probe_cosine
from adpe.parity.cases import CaseResult, GoldenCase, compare_gradients, largest_error, relative_error


def check_case(case: GoldenCase) -> CaseResult:
    """Run one case, by what it computes.

    Raises:
        UserError: for something that the probe does not compute.
    """
    checks: dict[str, Callable[[GoldenCase], CaseResult]] = {
        "head": _head, "trajectory": _trajectory, "schedule": _schedule, "sliding_window": _sliding_window,
        "miou": _miou, "resize_sizes": _resize_sizes, "photometric": _photometric, "random_crop": _random_crop,
    }  # fmt: skip
    computes = case.options.get("computes")
    if computes not in checks:
        raise UserError(f"Case {case.name}: computes is {computes!r}, expected one of {', '.join(checks)}.")
    return checks[computes](case)


def _load(head: LinearHead, state: dict[str, Tensor]) -> LinearHead:
    head.load_state_dict({name.replace("batchnorm_layer.", "norm."): value for name, value in state.items()})
    return head


def _head(case: GoldenCase) -> CaseResult:
    said = case.options
    maps = [case.arrays[f"input.features.{i}"].clone().requires_grad_() for i in range(said["features"])]
    tokens = [case.arrays[f"input.class_token.{i}"] for i in range(said["features"])] if said["class_token"] else []
    channels = said["channels"] * said["features"]
    head = LinearHead(channels, said["classes"], said["dropout"], said["batch_norm"], said["class_token"])
    head = _load(head, case.group("param."))
    labels = case.arrays["input.labels"]
    with torch.no_grad():
        evaluated = head.eval()(maps, tokens)
    trained = head.train()(maps, tokens, case.arrays.get("input.keep"))
    loss = pixel_loss(trained, labels)
    loss.backward()
    size = labels.shape[-2:]
    ours = {
        "train_logits": trained, "loss": loss, "eval_logits": evaluated, "eval_upsampled": stretch(evaluated, size),
        "train_upsampled": stretch(trained, size),
    }  # fmt: skip
    errors = [relative_error(value, case.arrays[f"output.{name}"]) for name, value in ours.items()]
    buffers = {name.replace("norm.", "batchnorm_layer."): value for name, value in head.named_buffers()}
    errors += [relative_error(buffers[name], value) for name, value in case.group("after.").items()]
    named = {name.replace("norm.", "batchnorm_layer."): p.grad for name, p in head.named_parameters()}
    named |= {f"features.{i}": x.grad for i, x in enumerate(maps)}
    gradients, remark = compare_gradients({n: g for n, g in named.items() if g is not None}, case.group("grad."))
    return case.result({"outputs": largest_error(errors), "gradients": gradients}, remark)


def _trajectory(case: GoldenCase) -> CaseResult:
    said, features = case.options, case.arrays["input.features"]
    head = _load(LinearHead(features.shape[2], said["classes"], dropout=0.0), case.group("param.")).train()
    optimizer = torch.optim.AdamW(head.parameters(), betas=tuple(said["betas"]), weight_decay=said["weight_decay"])
    losses, rates = [], []
    for step in range(said["steps"]):
        rates.append(probe_cosine(step, said["total_iter"], said["warmup_iters"], said["lr"], said["warmup_ratio"]))
        optimizer.param_groups[0]["lr"] = rates[-1]
        batch = step % len(features)
        loss = pixel_loss(head([features[batch]]), case.arrays["input.labels"][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    state = {name.replace("norm.", "batchnorm_layer."): value for name, value in head.state_dict().items()}
    final = largest_error(relative_error(state[name], value) for name, value in case.group("final.").items())
    rate = relative_error(torch.tensor(rates, dtype=torch.float64), case.arrays["output.lr"])
    error = relative_error(torch.stack(losses), case.arrays["output.losses"])
    return case.result({"trajectory losses": error, "trajectory parameters": final, "schedule": rate})


def _schedule(case: GoldenCase) -> CaseResult:
    errors = []
    for name, said in case.options["curves"].items():
        ours = [
            probe_cosine(step, said["total_iter"], said["warmup_iters"], said["lr"], said["warmup_ratio"])
            for step in case.arrays[f"input.{name}.iteration"].tolist()
        ]
        theirs = case.arrays[f"output.{name}.lr"]
        errors.append((torch.tensor(ours, dtype=torch.float64) / theirs - 1).abs().max().item())
    return case.result({"schedule": largest_error(errors)})


def _sliding_window(case: GoldenCase) -> CaseResult:
    patch = case.options["patch_size"]
    weight, bias = case.arrays["param.enc.proj.weight"], case.arrays["param.enc.proj.bias"]
    state = case.group("param.head.")
    head = _load(LinearHead(weight.shape[0], state["conv.bias"].shape[0]), state).eval()

    def predict(window: Tensor) -> Tensor:
        height, width = (size // patch * patch for size in window.shape[-2:])
        return head([torch.tanh(torch.conv2d(window[..., :height, :width], weight, bias, stride=patch))])

    errors, labels = [], []
    with torch.no_grad():
        for name, said in case.options["variants"].items():
            logits = slide_logits(
                case.arrays[f"input.{name}.image"], predict, tuple(said["crop"]), tuple(said["stride"])
            )
            probabilities = stretch(logits, said["label_size"]).softmax(1)
            largest, chosen = probabilities.max(1)
            errors.append(relative_error(logits, case.arrays[f"output.{name}.logits"]))
            errors.append(relative_error(largest, case.arrays[f"output.{name}.probability_max"]))
            best = probabilities.topk(2, 1).values
            clear = best[:, 0] - best[:, 1] > 1e-4
            labels.append(bool((chosen[clear] == case.arrays[f"output.{name}.argmax"][clear]).all()))
    return case.result({"outputs": largest_error(errors), "exact": 0.0 if all(labels) else float("inf")})


def _miou(case: GoldenCase) -> CaseResult:
    """Through mmseg's IoUMetric, which the configs use."""
    from mmseg.evaluation import IoUMetric

    classes = case.options["classes"]
    areas = []
    for index in range(len(case.arrays["output.per_image"])):
        label = case.arrays[f"input.label.{index}"].long()
        # As the configs read labels: 0 and 255 are ignored, c + 1 is class c.
        label = torch.where((label == 0) | (label == 255), 255, label - 1)
        prediction = case.arrays[f"input.prediction.{index}"].long()
        areas.append(IoUMetric.intersect_and_union(prediction, label, classes, 255))
    ours = torch.stack([torch.stack(list(image)) for image in areas])
    total = ours.sum(0)
    intersection, union = total[0], total[1]
    metrics = IoUMetric.total_area_to_metrics(*total, metrics=["mIoU", "mDice", "mFscore"])
    named = {
        "mIoU": "IoU",
        "acc": "Acc",
        "dice": "Dice",
        "fscore": "Fscore",
        "precision": "Precision",
        "recall": "Recall",
    }
    errors = [abs(np.nanmean(metrics[ours_]) / case.options["metrics"][name] - 1) for name, ours_ in named.items()]
    errors.append(abs(float(metrics["aAcc"]) / case.options["metrics"]["aAcc"] - 1))
    iou, theirs = intersection / union, case.arrays["output.iou"]
    errors.append(relative_error(iou.nan_to_num(-1), theirs.nan_to_num(-1)))
    exact = max(
        relative_error(ours, case.arrays["output.per_image"]), relative_error(total, case.arrays["output.areas"])
    )
    return case.result({"outputs": largest_error(errors), "exact": exact})


def _resize_sizes(case: GoldenCase) -> CaseResult:
    table = case.arrays["table"].tolist()
    wrong = [row for row in table if list(resized_size(*row[:3])) != row[3:]]
    return case.result({"exact": float(len(wrong))})


def _photometric(case: GoldenCase) -> CaseResult:
    image = case.arrays["input.image"]
    errors = [
        relative_error(distort(image, draws), case.arrays[f"output.{index}"])
        for index, draws in enumerate(case.options["draws"])
    ]
    return case.result({"exact": largest_error(errors)})


def _random_crop(case: GoldenCase) -> CaseResult:
    image, label = case.arrays["input.image"], case.arrays["input.label"]
    (height, width), errors = case.options["crop"], []
    for index, count in enumerate(case.options["draws"]):
        offsets = iter([(row, column) for row, column in case.arrays[f"input.{index}.offsets"].tolist()])
        top, left = crop_offset(label[0].cpu().numpy(), (height, width), partial(next, offsets))
        part = slice(None), slice(top, top + height), slice(left, left + width)
        errors.append(relative_error(image[part], case.arrays[f"output.{index}.image"]))
        errors.append(relative_error(label[part], case.arrays[f"output.{index}.label"]))
        errors.append(float(len(list(offsets)) != len(case.arrays[f"input.{index}.offsets"]) - count))
    return case.result({"exact": largest_error(errors)})
