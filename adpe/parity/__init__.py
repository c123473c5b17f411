"""Comparison with numbers recorded from the references.

A directory of goldens holds ``meta.json`` (its ``system``, sizes, and each case's options) and one ``.npz`` a case. A
system is a module with ``check_case(case: GoldenCase) -> CaseResult`` and an entry in `SYSTEMS`.
"""

SYSTEMS = {
    "adpe": "adpe.parity.method",
    "attentive_probe": "adpe.parity.attentive_probe",
    "colormae": "adpe.parity.colormae",
    "crossmae": "adpe.parity.crossmae",
    "droppos": "adpe.parity.droppos",
    "eomt": "adpe.parity.eomt",
    "hpm": "adpe.parity.hpm",
    "knn_segmentation": "adpe.parity.knn_segmentation",
    "linear_segmentation": "adpe.parity.linear_segmentation",
    "mfm": "adpe.parity.mfm",
    "pixio": "adpe.parity.pixio",
    "stop": "adpe.parity.stop",
}
