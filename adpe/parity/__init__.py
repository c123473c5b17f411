"""Comparison with numbers recorded from the references.

A directory of goldens holds ``meta.json`` (its ``system``, sizes, and each case's options) and one ``.npz`` a case. A
system is a module with ``check_case(case: GoldenCase) -> CaseResult`` and an entry in `SYSTEMS`.
"""

SYSTEMS = {
    "adpe": "adpe.parity.method",
    "attentive_probe": "adpe.parity.attentive_probe",
    "backdoor": "adpe.parity.backdoor",
    "colormae": "adpe.parity.colormae",
    "crossmae": "adpe.parity.crossmae",
    "droppos": "adpe.parity.droppos",
    "dino_mm": "adpe.parity.dino_mm",
    "gcvit": "adpe.parity.gcvit",
    "dualcoop": "adpe.parity.dualcoop",
    "eomt": "adpe.parity.eomt",
    "hpm": "adpe.parity.hpm",
    "knn_segmentation": "adpe.parity.knn_segmentation",
    "linear_segmentation": "adpe.parity.linear_segmentation",
    "mapet": "adpe.parity.mapet",
    "mfm": "adpe.parity.mfm",
    "pacmac": "adpe.parity.pacmac",
    "parti": "adpe.parity.parti",
    "pixio": "adpe.parity.pixio",
    "sdssl": "adpe.parity.sdssl",
    "selfpatch": "adpe.parity.selfpatch",
    "semmae": "adpe.parity.semmae",
    "sgt": "adpe.parity.sgt",
    "spvit": "adpe.parity.spvit",
    "stop": "adpe.parity.stop",
}
