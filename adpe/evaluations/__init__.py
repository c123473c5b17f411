"""Evaluations of pretrained encoders. One on frozen features is a file, and a line here: name to ``module:class``."""

EVALUATIONS = {
    "attentive_probe": "adpe.evaluations.attentive_probe:AttentiveProbe",
    "backdoor": "adpe.evaluations.robustness:BackdoorRobustness",
    "dual_prompts": "adpe.evaluations.multi_label.dual_prompt_recognition:DualPromptRecognition",
    "efficient_probe": "adpe.evaluations.attentive_probe:EfficientProbing",
    "knn": "adpe.evaluations.knn:KNN",
    "knn_layers": "adpe.evaluations.knn:LayerKNN",
    "knn_segmentation": "adpe.evaluations.knn_segmentation:PatchSegmentation",
    "linear_probe": "adpe.evaluations.linear_probe:LinearProbe",
    "logistic": "adpe.evaluations.logistic:LogisticProbe",
    "shortcut": "adpe.evaluations.shortcut:Shortcut",
    "multi_label_probe": "adpe.evaluations.multi_label.probe:MultiLabelProbe",
    "pacmac": "adpe.evaluations.domain_adaptation.evaluation:DomainAdaptation",
    "positions": "adpe.evaluations.positions:Positions",
}
