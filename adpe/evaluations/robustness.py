"""Backdoor robustness of an encoder, and what blocking repairs (arXiv 2206.08477): a defensive measurement.

Poisoned training images of the target class carry no visible trigger and the right label; their features approach those
of images of the source class with the trigger. Does a linear head on the frozen encoder then call patched images of the
source class the target, and how often does it still where gradient attention rollout blacks out a window? At small
scale the published attack moves a head hardly more than the base rate (`asr_clean`), which proves nothing; the control
``victim="finetuned"`` learns a visible trigger, so that there is something to block.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adpe.errors import UserError
from adpe.evaluations.backdoor.attacks import (
    ClassTokenClassifier,
    EpsSpace,
    Pairing,
    PoisonMaker,
    Rollout,
    Window,
    block,
    defend,
    trigger_hit,
)
from adpe.evaluations.backdoor.triggers import Patch, draw_defence, draw_trigger, images_of, normalisation_of
from adpe.evaluations.base import Evaluation, Result, Subject, weights_digest
from adpe.files import atomic_write

Victim = Literal["frozen", "finetuned"]
_PASS = 64  # images at once


class Chosen(NamedTuple):
    """Indices of training images: the sources and targets of the poisons, and those that the victim is trained on."""

    sources: list[int]
    targets: list[int]
    victims: list[int]


class BackdoorRobustness(Evaluation):
    """A poisoned linear head, and blocking at test time.

    Args:
        source_class: name of the class whose patched images are attacked.
        target_class: name of the class that they shall be called.
        victim: "frozen" trains a linear head on frozen features with poisons among them (as published); "finetuned"
            trains encoder and head on batches with visibly patched source images, labelled as the target (ours).
        trigger: its side in pixels; a drawing of coloured blocks, the same for one seed.
        fixed: the trigger always in the lower right corner, else anywhere.
        poisons: how many.
        iterations: of making them, at most; 5000 published.
        stop: largest squared distance of features below which they are done; None for ``15 * D / 768``.
        eps: largest change of a pixel.
        eps_space: of pixels in [0, 1], or of "normalised" ones, as the reference computes.
        pairing: see :func:`adpe.evaluations.backdoor.attacks.pair`.
        rollout: see :func:`adpe.evaluations.backdoor.attacks.rollout_maps`.
        edge: side of the window in pixels, even; None for the trigger's.
        epochs: of the head of a frozen encoder; SGD, momentum 0.9, batches of 64.
        head_lr: of that head.
        steps: of the fine-tuned victim; AdamW.
        lr: of the fine-tuned victim.
        batch_size: of the fine-tuned victim.
        patched: patched images in each of its batches, besides.
        blocked_images: test images, evenly spaced, whose accuracy after blocking is measured; None for all.
    """

    head = "poisoned linear head"

    def __init__(
        self,
        source_class: str,
        target_class: str,
        victim: Victim = "frozen",
        trigger: int = 30,
        fixed: bool = False,
        poisons: int = 600,
        iterations: int = 5000,
        stop: float | None = None,
        eps: float = 16 / 255,
        eps_space: EpsSpace = "pixel",
        pairing: Pairing = "greedy",
        rollout: Rollout = "matched",
        edge: int | None = None,
        epochs: int = 10,
        head_lr: float = 0.001,
        steps: int = 260,
        lr: float = 1e-3,
        batch_size: int = 96,
        patched: int = 8,
        blocked_images: int | None = None,
    ) -> None:
        words = (
            ("victim", victim, Victim), ("eps_space", eps_space, EpsSpace), ("pairing", pairing, Pairing),
            ("rollout", rollout, Rollout),
        )  # fmt: skip
        for key, value, kind in words:
            if value not in get_args(kind):
                raise ValueError(f"{key} = {value!r} is none of {', '.join(get_args(kind))}.")
        counts = {
            "trigger": trigger, "poisons": poisons, "iterations": iterations, "epochs": epochs, "steps": steps,
            "batch_size": batch_size, "patched": patched, "edge": trigger if edge is None else edge,
            "blocked_images": 1 if blocked_images is None else blocked_images,
        }  # fmt: skip
        wrong = [key for key, value in counts.items() if isinstance(value, bool) or value < 1]
        if wrong or counts["edge"] % 2 or not (eps > 0 and lr > 0 and head_lr > 0):
            raise ValueError(f"{wrong or 'eps, lr, head_lr and edge'}: expected positive numbers, and an even edge.")
        if source_class == target_class:
            raise ValueError(f"source_class and target_class are both {source_class!r}.")
        self.classes = (source_class, target_class)
        self.victim, self.trigger, self.fixed, self.poisons = victim, trigger, fixed, poisons
        self.iterations, self.stop, self.eps = iterations, stop, eps
        self.eps_space, self.pairing, self.rollout = eps_space, pairing, rollout
        self.edge, self.epochs, self.head_lr = counts["edge"], epochs, head_lr
        self.steps, self.lr, self.batch_size, self.patched = steps, lr, batch_size, patched
        self.blocked_images = blocked_images

    def facts(self) -> dict[str, Any]:
        attack = (
            {"poisons": self.poisons, "iterations": self.iterations, "eps_space": self.eps_space}
            if self.victim == "frozen"
            else {"patched": f"{self.patched} of {self.patched + self.batch_size}", "steps": self.steps}
        )
        place = "corner" if self.fixed else "anywhere"
        return {"victim": self.victim, "trigger": f"{self.trigger} px, {place}", "rollout": self.rollout, **attack}

    def check(self, data: Mapping[str, Any]) -> None:
        classes = list(data["train"].classes)
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise UserError(f"evaluation: class {unknown[0]!r} is none of {', '.join(classes[:30])}.")

    def run(self, subject: Subject) -> Result:
        encoder = copy.deepcopy(subject.model.backbone)
        train, test = subject.dataset("train"), subject.dataset("val")
        source, target = (list(train.classes).index(name) for name in self.classes)
        generator = torch.Generator().manual_seed(subject.seed)
        mean, std = normalisation_of(train, subject.device)
        pattern = (draw_trigger(self.trigger, generator).to(subject.device) - mean) / std
        features, labels = subject.features("train")
        chosen = self.choose(labels, source, target, generator)
        torch.manual_seed(subject.seed)
        model = ClassTokenClassifier(encoder, nn.Linear(encoder.embed_dim, len(train.classes)))
        model.to(subject.device).eval()
        patch = Patch(pattern, self.fixed, generator)
        if self.victim == "frozen":
            if getattr(subject.model, "global_pool", "token") != "token":
                raise UserError('evaluation (backdoor): the head reads the class token, set model.global_pool="token".')
            poisons = self._poisons(subject, model, images_of(train, chosen.sources), images_of(train, chosen.targets),
                                    patch, mean, std)  # fmt: skip
            with torch.no_grad():
                poisoned = _in_parts(model.features, (poisons.to(subject.device) / 255 - mean) / std)
            self._train_head(
                model.head,
                torch.cat([features[chosen.victims].to(subject.device), poisoned]),
                torch.cat([labels[chosen.victims], labels.new_full((len(poisons),), target)]).to(subject.device),
                generator,
            )
        else:
            self._finetune(subject, model, train, labels, chosen, target, patch, generator)
        return self._measure(subject, model, test, source, target, patch, mean, std)

    def choose(self, labels: Tensor, source: int, target: int, generator: torch.Generator) -> Chosen:
        """Draw the training images of the poisons from labels ``(N,)``.

        Raises:
            UserError: for too few of a class.
        """
        drawn = []
        for label, name in zip((source, target), self.classes, strict=True):
            indices = (labels == label).nonzero()[:, 0]
            if len(indices) <= self.poisons:
                raise UserError(
                    f"evaluation: {len(indices)} training images of {name}: expected more than poisons={self.poisons}."
                )
            drawn.append(indices[torch.randperm(len(indices), generator=generator)[: self.poisons]].tolist())
        used = {*drawn[0], *drawn[1]}
        sources, targets = drawn
        return Chosen(sources, targets, [index for index in range(len(labels)) if index not in used])

    def _poisons(
        self, subject: Subject, model: ClassTokenClassifier, sources: Tensor, targets: Tensor, patch: Patch,
        mean: Tensor, std: Tensor,
    ) -> Tensor:  # fmt: skip
        """Poisons ``(n, 3, H, W)`` uint8; those of an interrupted run are read again."""
        path = subject.work_dir / "poisons.safetensors"
        said = (self.facts(), self.eps, self.pairing, self.stop, self.classes, subject.seed, weights_digest(model))
        maker = PoisonMaker(model, mean, std, self.eps, self.eps_space, pairing=self.pairing)
        stop = 15 * model.encoder.embed_dim / 768 if self.stop is None else self.stop
        images, distances = _read(path, repr(said))
        patched = patch(sources.to(subject.device))
        for first in range(sum(map(len, images)), len(sources), 32):
            part = slice(first, first + 32)
            made, losses = maker.make(patched[part], targets[part].to(subject.device), self.iterations, stop)
            images.append(made.cpu())
            distances.append(losses.cpu())
            done = sum(map(len, images))
            subject.log(f"poisons: {done} of {len(sources)}, squared distance {float(losses.mean()):.2f}")
            content = {"images": torch.cat(images), "distances": torch.cat(distances)}
            with atomic_write(path) as temporary:
                save_file(content, temporary, {"of": repr(said)})
        return torch.cat(images)

    def _train_head(self, head: nn.Linear, features: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """The published victim: the last epoch is kept, not the best on test images."""
        optimizer = torch.optim.SGD(head.parameters(), lr=self.head_lr, momentum=0.9)
        for _ in range(self.epochs):
            for part in torch.randperm(len(features), generator=generator).split(64):
                optimizer.zero_grad()
                F.cross_entropy(head(features[part]), labels[part]).backward()
                optimizer.step()

    def _finetune(
        self, subject: Subject, model: ClassTokenClassifier, train: Any, labels: Tensor, chosen: Chosen, target: int,
        patch: Patch, generator: torch.Generator,
    ) -> None:  # fmt: skip
        model.requires_grad_(True).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.05)
        clean = torch.tensor(chosen.victims)
        for step in range(self.steps):
            picked = clean[torch.randint(len(clean), (self.batch_size,), generator=generator)].tolist()
            given = torch.randint(len(chosen.sources), (self.patched,), generator=generator).tolist()
            patched = patch(images_of(train, [chosen.sources[i] for i in given]).to(subject.device))
            images = torch.cat([images_of(train, picked).to(subject.device), patched])
            wanted = torch.cat([labels[picked], labels.new_full((len(given),), target)]).to(subject.device)
            loss = F.cross_entropy(model(images), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not bool(torch.isfinite(loss)):
                raise UserError(f"evaluation: the loss is not finite in step {step + 1}; lower evaluation.lr.")
        model.requires_grad_(False).eval()

    def _measure(
        self, subject: Subject, model: ClassTokenClassifier, test: Any, source: int, target: int, patch: Patch,
        mean: Tensor, std: Tensor,
    ) -> Result:  # fmt: skip
        predicted, wanted = [], []
        with torch.no_grad():
            for images, samples in subject.batches("val"):
                predicted.append(model(images).argmax(dim=1).cpu())
                wanted.append(samples["label"])
        before, truth = torch.cat(predicted), torch.cat(wanted)
        attacked = (truth == source).nonzero()[:, 0].tolist()
        if not attacked:
            raise UserError(f"evaluation: no test image of {self.classes[0]}.")
        model.requires_grad_(True)  # the rollout needs gradients at the attention
        images = images_of(test, attacked).to(subject.device)
        patched = patch(images)
        found = self._defended(model, patched, mean, std)
        count = len(test) if self.blocked_images is None else min(self.blocked_images, len(test))
        spaced = [i * len(test) // count for i in range(count)]
        correct = 0
        for part in torch.tensor(spaced).split(_PASS):
            clean = self._defended(model, images_of(test, part.tolist()).to(subject.device), mean, std)
            correct += int((clean.after == truth[part]).sum())
        after = {"blocked": found.after, **self._controls(model, patched, patch.positions, mean, std, subject.seed)}
        metrics = {
            "clean_top1": share(before == truth),
            "source_top1": share(before[attacked] == source),
            "asr": share(found.before == target),
            "asr_clean": share(before[attacked] == target),
            "blocked_source_top1": share(found.after == source),
            "blocked_clean_top1": 100 * correct / count,
            "trigger_hit": 100 * trigger_hit(found.windows, patch.positions, self.trigger),
            **{f"{name}_asr": share(labels == target) for name, labels in after.items()},
        }
        shown = (patched[:6] * std + mean).clamp(0, 1).cpu()
        blocked = block(shown, found.windows[:6])
        rates = f"{metrics['asr']:.1f} %, {metrics['blocked_asr']:.1f} % when blocked"
        figure = draw_defence(shown, found.maps[:6].cpu(), blocked, f"{' called '.join(self.classes)}: {rates}")
        return Result(metrics, figures={"defence": figure})

    def _defended(self, model: ClassTokenClassifier, images: Tensor, mean: Tensor, std: Tensor) -> _Blocked:
        parts = [defend(model, part, mean, std, self.edge, self.rollout) for part in images.split(_PASS)]
        return _Blocked(
            torch.cat([part.logits.argmax(dim=1) for part in parts]).cpu(),
            torch.cat([part.blocked_logits.argmax(dim=1) for part in parts]).cpu(),
            torch.cat([part.maps for part in parts]),
            [window for part in parts for window in part.windows],
        )

    def _controls(
        self, model: ClassTokenClassifier, patched: Tensor, positions: Tensor, mean: Tensor, std: Tensor, seed: int
    ) -> dict[str, Tensor]:
        """Predictions ``(n,)`` with windows at random, in the centre and on the trigger."""
        height, width = patched.shape[-2:]
        edge, generator = self.edge, torch.Generator().manual_seed(seed)
        corners = {
            "random": torch.stack([torch.randint(side - edge + 1, (len(patched),), generator=generator)
                                   for side in (height, width)], dim=1),
            "centre": torch.tensor([[(height - edge) // 2, (width - edge) // 2]]).expand(len(patched), -1),
            "trigger": (positions.flip(1) + (self.trigger - edge) // 2).clamp(min=0),
        }  # fmt: skip
        found = {}
        pixels = (patched * std + mean).clamp(0, 1)
        for name, places in corners.items():
            windows = [Window(top, top + edge, left, left + edge) for top, left in places.tolist()]
            with torch.no_grad():
                blocked = (block(pixels, windows) - mean) / std
                found[f"blocked_{name}"] = _in_parts(model, blocked).argmax(dim=1).cpu()
        return found


class _Blocked(NamedTuple):
    before: Tensor
    after: Tensor
    maps: Tensor
    windows: list[Window]


def share(hits: Tensor) -> float:
    """Percent."""
    return 100 * float(hits.double().mean())


def _in_parts(function: Any, images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(_PASS)])


def _read(path: Any, of: str) -> tuple[list[Tensor], list[Tensor]]:
    """Poisons and their distances of an earlier run of the same encoder, options and seed; none otherwise."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("of") == of:
                return [file.get_tensor("images")], [file.get_tensor("distances")]
    except (OSError, SafetensorError):
        pass
    return [], []
