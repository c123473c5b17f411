"""What the demo's two tasks share: the encoder, where it starts and where the data lies."""

_base_ = "./demo_encoder.py"

data_root = "work_dirs/demo/data"
pretrained = None
initialisation = dict(type="Pretrained", checkpoint=pretrained) if pretrained else None
start = "pretrained" if pretrained else "random"
# None takes the name from the checkpoint.
method = None if pretrained else "AdPE"
