"""Comparison with numbers recorded from the references.

A directory of goldens holds ``meta.json`` (its ``system``, sizes, and each case's options) and one ``.npz`` a case. A
system is a module with ``check_case(case: GoldenCase) -> CaseResult`` and an entry in `SYSTEMS`.
"""

SYSTEMS = {
    "adpe": "adpe.parity.method",
    "attentive_probe": "adpe.parity.evaluations.attentive_probe",
    "backdoor": "adpe.parity.evaluations.backdoor",
    "colormae": "adpe.parity.methods.colormae",
    "crossmae": "adpe.parity.methods.crossmae",
    "droppos": "adpe.parity.methods.droppos",
    "dino_mm": "adpe.parity.self_distillation.dino_mm",
    "gcvit": "adpe.parity.backbones.gcvit",
    "dualcoop": "adpe.parity.evaluations.dualcoop",
    "eomt": "adpe.parity.evaluations.eomt",
    "hpm": "adpe.parity.methods.hpm",
    "knn_segmentation": "adpe.parity.evaluations.knn_segmentation",
    "linear_segmentation": "adpe.parity.evaluations.linear_segmentation",
    "mapet": "adpe.parity.methods.mapet",
    "mfm": "adpe.parity.methods.mfm",
    "pacmac": "adpe.parity.evaluations.pacmac",
    "parti": "adpe.parity.methods.parti",
    "pixio": "adpe.parity.methods.pixio",
    "sdssl": "adpe.parity.self_distillation.sdssl",
    "selfpatch": "adpe.parity.self_distillation.selfpatch",
    "semmae": "adpe.parity.methods.semmae",
    "sgt": "adpe.parity.backbones.sgt",
    "spvit": "adpe.parity.backbones.spvit",
    "stop": "adpe.parity.methods.stop",
}
