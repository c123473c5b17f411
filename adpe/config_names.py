"""Names of configs that are a recipe with some of its options set, such as ``pretrain/mae_vitb_800e``.

Everything that takes the path of a config takes these, as paths below configs/: the command line, suites, and the
``_base_`` of other configs. There is no file of that path; `text` is what one would hold. Names that a config had in
earlier versions are read in the same way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from adpe.files import ROOT

CONFIGS = ROOT / "configs"
_SIZES = {"vitb": "base", "vitl": "large", "vith": "huge"}
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mae_plus": ("mae_plus", {}),
    "mae_plus_rpe": ("mae_plus", {"position": "relative"}),
    "adpe_ape_embedding": ("adpe", {"adversary": "embedding"}),
    "adpe_ape_coordinate": ("adpe", {}),
    "adpe_rpe_embedding": ("adpe", {"position": "relative", "adversary": "embedding"}),
    "adpe_rpe_coordinate": ("adpe", {"position": "relative"}),
}
# Name to recipe and its options, both paths below configs/.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"_base_/pretrain_{epochs}e.py": ("_base_/pretrain.py", {"epochs": epochs}) for epochs in (400, 800, 1600)},
    **{
        f"pretrain/{variant}_{size}_{epochs}e.py": (
            f"pretrain/{recipe}.py",
            {**options, "size": _SIZES[size], "epochs": epochs},
        )
        for variant, (recipe, options) in {"mae": ("mae", {}), **_VARIANTS}.items()
        for size in ("vitb", "vitl")
        for epochs in ((800, 1600) if variant == "mae" else (400, 1600))
    },
    "pretrain/mae_vith_1600e.py": ("pretrain/mae.py", {"size": "huge", "epochs": 1600}),
    "pretrain/adpe_rpe_coordinate_vith_1600e.py": (
        "pretrain/adpe.py",
        {"position": "relative", "size": "huge", "epochs": 1600},
    ),
    **{
        f"pretrain/{data}_{variant}.py": (f"pretrain/{data}_{recipe}.py", options)
        for data in ("cifar10", "photos112")
        for variant, (recipe, options) in _VARIANTS.items()
        if variant != recipe and (data == "cifar10" or variant in ("adpe_ape_coordinate", "adpe_rpe_coordinate"))
    },
}

# Folder that configs were moved to -> what their paths began with before, and their names.
_ROOMS = {
    "cifar10": (
        "cifar10_",
        "attentive backdoor backdoor_finetuned ep finetune knn knn_layers linear logistic pacmac positions shortcut",
    ),
    "imagenet": (
        "imagenet_",
        "attentive_vitb ep_vitb finetune_vitb finetune_vith finetune_vitl knn_vitb linear_vitb linear_vitl "
        "lowshot_vitb positions_vitb",
    ),
    "dense": ("", "ade20k_eomt_vitb ade20k_eomt_vitl ade20k_knn_vitb ade20k_linear_finetune_vitb ade20k_linear_vitb"),
    "pretrain/masks": (
        "pretrain/",
        "cifar10_crossmae cifar10_hpm cifar10_mae_plus_blocks cifar10_mae_plus_colormask cifar10_semmae "
        "crossmae_vitb_800e hpm_vitb_200e hpm_vitb_800e mae_colormask_vitb_800e pixio_vith_400e semmae_vitb_800e",
    ),
    "pretrain/positions": (
        "pretrain/",
        "cifar10_cropped_positions cifar10_droppos cifar10_ijepa_stop cifar10_mae_plus_stop droppos_vitb_800e "
        "ijepa_stop_vitb_600e mae_plus_stop_vitb_400e",
    ),
    "pretrain/self_distillation": (
        "pretrain/",
        "cifar10_dino cifar10_sdssl_byol cifar10_sdssl_moco cifar10_sdssl_simclr cifar10_selfpatch dino_vits_300e "
        "sdssl_byol_vitb_300e sdssl_moco_vitb_300e sdssl_simclr_vitb_300e selfpatch_vits_300e",
    ),
    "pretrain/bands": ("pretrain/", "cifar10_dino_mm dino_mm_vits8_100e"),
    "pretrain/targets": ("pretrain/", "cifar10_mapet cifar10_mfm mapet_vitb_300e mfm_r50_300e mfm_vitb_300e"),
    "_base_/classification": (
        "_base_/",
        "cifar10_classification imagenet_classification imagenet_finetune imagenet_linear",
    ),
    "_base_/pretraining": ("_base_/pretrain_", "cifar10 dino dino_cifar10 photos112 sdssl sdssl_cifar10"),
}
# Path of an earlier version to today's, both below configs/.
MOVED = {
    "coco_multilabel_vitb.py": "multi_label/coco_vitb.py",
    "scenes_multilabel.py": "multi_label/scenes.py",
    "scenes_multilabel_linear.py": "multi_label/scenes_linear.py",
    **{f"backbones/demo_{name}.py": f"demo/segmentation_{name}.py" for name in ("gcvit", "saliency", "spvit")},
    **{
        f"{before}{name}.py": f"{folder}/{name}.py"
        for folder, (before, names) in _ROOMS.items()
        for name in names.split()
    },
}


def named(path: Path) -> tuple[str, dict[str, Any]] | None:
    """The recipe and the options that a path of no file stands for."""
    try:
        name = path.resolve().relative_to(CONFIGS.resolve()).as_posix()
    except ValueError:
        return None
    return (MOVED[name], {}) if name in MOVED else NAMES.get(name)


def is_config(path: Path) -> bool:
    """Whether a path is a file, or the name of a recipe with options."""
    return os.path.isfile(path) or named(path) is not None  # pathlib fails at names too long for a file


def text(path: Path) -> str:
    """The text of a config."""
    found = None if path.is_file() else named(path)
    if found is None:
        return path.read_text(encoding="utf-8")
    recipe, options = found
    lines = [f"_base_ = {str(CONFIGS / recipe)!r}", *(f"{name} = {value!r}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def known_configs() -> list[str]:
    """Paths of all configs, those of files and of names, relative to the folder that holds configs/."""
    files = [file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.py")]
    return sorted(f"configs/{name}" for name in {*files, *NAMES} if not name.startswith("_base_"))
