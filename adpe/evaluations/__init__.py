"""Evaluations of pretrained encoders. One on frozen features is a file, and a line here: name to ``module:class``."""

EVALUATIONS = {
    "knn": "adpe.evaluations.knn:KNN",
    "knn_segmentation": "adpe.evaluations.knn_segmentation:PatchSegmentation",
    "linear_probe": "adpe.evaluations.linear_probe:LinearProbe",
    "positions": "adpe.evaluations.positions:Positions",
}
