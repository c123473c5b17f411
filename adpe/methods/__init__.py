"""Pretraining methods. A new one is a file, and a line in this list: name in configs to ``module:class``."""

METHODS = {
    "mae": "adpe.methods.mae:MAE",
    "mae_plus": "adpe.methods.mae_plus:MAEPlus",
    "adpe": "adpe.methods.adpe:AdPE",
    "mapet": "adpe.methods.mapet:MaPeT",
    "mfm": "adpe.methods.mfm:MFM",
    "cropped_positions": "adpe.methods.cropped_positions:CroppedPositions",
    "crossmae": "adpe.methods.crossmae:CrossMAE",
    "droppos": "adpe.methods.droppos:DropPos",
    "hpm": "adpe.methods.hpm:HPM",
    "ijepa": "adpe.methods.ijepa:IJEPA",
    "dino": "adpe.methods.dino_method:DINO",
    "semmae": "adpe.methods.semmae:SemMAE",
    "semmae_plus": "adpe.methods.semmae:SemMAEPlus",
    "sem_adpe": "adpe.methods.semmae:SemAdPE",
    "sdssl": "adpe.methods.sdssl:SDSSL",
    "selfpatch": "adpe.methods.selfpatch:SelfPatch",
    "stop_mae": "adpe.methods.stop:StoPMAE",
    "stop_mae_plus": "adpe.methods.stop:StoPMAEPlus",
    "vitvq": "adpe.methods.parti.vitvq:ViTVQ",
    "sequence": "adpe.methods.parti.image_sequences:ImageSequenceModel",
}
