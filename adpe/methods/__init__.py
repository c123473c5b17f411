"""Pretraining methods. A new one is a file, and a line in this list: name in configs to ``module:class``."""

METHODS = {
    "mae": "adpe.methods.mae:MAE",
    "mae_plus": "adpe.methods.mae_plus:MAEPlus",
    "adpe": "adpe.methods.adpe:AdPE",
    "mapet": "adpe.methods.mapet:MaPeT",
    "mfm": "adpe.methods.mfm:MFM",
    "cropped_positions": "adpe.methods.positions.cropped_positions:CroppedPositions",
    "crossmae": "adpe.methods.crossmae:CrossMAE",
    "droppos": "adpe.methods.positions.droppos:DropPos",
    "hpm": "adpe.methods.masks.hpm:HPM",
    "ijepa": "adpe.methods.positions.ijepa:IJEPA",
    "dino": "adpe.methods.self_distillation.dino_method:DINO",
    "semmae": "adpe.methods.masks.semmae:SemMAE",
    "semmae_plus": "adpe.methods.masks.semmae:SemMAEPlus",
    "sem_adpe": "adpe.methods.masks.semmae:SemAdPE",
    "sdssl": "adpe.methods.self_distillation.sdssl:SDSSL",
    "selfpatch": "adpe.methods.self_distillation.selfpatch:SelfPatch",
    "stop_mae": "adpe.methods.positions.stop:StoPMAE",
    "stop_mae_plus": "adpe.methods.positions.stop:StoPMAEPlus",
    "vitvq": "adpe.methods.parti.vitvq:ViTVQ",
    "sequence": "adpe.methods.parti.image_sequences:ImageSequenceModel",
}
