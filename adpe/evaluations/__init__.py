"""Evaluations of pretrained encoders. One on frozen features is a file, and a line here: name to ``module:class``."""

EVALUATIONS = {
    "knn": "adpe.evaluations.knn:KNN",
    "linear_probe": "adpe.evaluations.linear_probe:LinearProbe",
    "positions": "adpe.evaluations.positions:Positions",
}
