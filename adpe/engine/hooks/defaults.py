"""The hooks and the visualizer of every training, also of one whose config is mmsegmentation's or mmdetection's own."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict

# configs/_base_/runtime.py names the same, for our own configs.
GUARDS = {
    "finite_loss": "AdPEFiniteLossHook",
    "learning_rate_guard": "AdPELearningRateGuard",
    "gradient_guard": "AdPEGradientGuard",
    "adversary_guard": "AdPEAdversaryGuard",
    "evaluation_guard": "AdPEEvaluationGuard",
    "label_guard": "AdPELabelGuard",
}
_VISUALIZERS = {"mmseg": "SegLocalVisualizer", "mmdet": "DetLocalVisualizer"}


def complete_hooks(cfg: Config) -> None:
    """Give a training the hooks that it lacks: safe checkpoints, the guards, and the record if one is asked for.

    mmengine's CheckpointHook, named or by default, becomes `AdPECheckpointHook` with the same arguments. A hook of
    ``default_hooks`` that is None stays switched off.

    Args:
        cfg: changed in place.
    """
    hooks = cfg.setdefault("default_hooks", ConfigDict())
    hooks.setdefault("checkpoint", ConfigDict(type="CheckpointHook", interval=1))  # as mmengine does
    custom = [hook for hook in cfg.get("custom_hooks") or [] if isinstance(hook, dict)]
    for hook in [*hooks.values(), *custom]:
        if isinstance(hook, dict) and type_name(hook) == "CheckpointHook":
            hook["type"] = "AdPECheckpointHook"
    present = {type_name(hook) for hook in custom}
    wanted = {**GUARDS, **({"record": "AdPERecordHook"} if cfg.get("record") else {})}
    for name, hook_type in wanted.items():
        if hook_type not in present:
            hooks.setdefault(name, ConfigDict(type=hook_type))


def complete_visualizer(cfg: Config) -> None:
    """Let predictions be drawn: mmengine's plain Visualizer, named or by default, ignores them without a word.

    Args:
        cfg: changed in place, if its ``default_scope`` has a visualizer of its own.
    """
    specific = _VISUALIZERS.get(cfg.get("default_scope") or "")
    if specific is None:
        return
    if cfg.get("visualizer") is None:
        cfg.visualizer = ConfigDict(type=specific, vis_backends=[ConfigDict(type="LocalVisBackend")])
    elif isinstance(cfg.visualizer, dict) and type_name(cfg.visualizer) in ("Visualizer", ""):
        cfg.visualizer["type"] = specific


def type_name(component: dict[str, Any]) -> str:
    """The name of the class of a component, given as a class or by its name, with or without scope or module."""
    kind = component.get("type", "")
    return getattr(kind, "__name__", str(kind)).rpartition(".")[2]
