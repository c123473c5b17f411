"""Evaluations of pretrained encoders. One on frozen features is a file, and a line here: name to ``module:class``."""

EVALUATIONS = {
    "attentive_probe": "adpe.evaluations.attentive_probe:AttentiveProbe",
    "backdoor": "adpe.evaluations.robustness:BackdoorRobustness",
    "efficient_probe": "adpe.evaluations.attentive_probe:EfficientProbing",
    "knn": "adpe.evaluations.knn:KNN",
    "knn_layers": "adpe.evaluations.knn:LayerKNN",
    "knn_segmentation": "adpe.evaluations.knn_segmentation:PatchSegmentation",
    "linear_probe": "adpe.evaluations.linear_probe:LinearProbe",
    "logistic": "adpe.evaluations.logistic:LogisticProbe",
    "pacmac": "adpe.evaluations.domain_adaptation:DomainAdaptation",
    "positions": "adpe.evaluations.positions:Positions",
}
