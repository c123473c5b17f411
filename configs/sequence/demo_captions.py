"""Scenes of digits from captions, after Parti (arXiv 2206.10789): "a 2 left of a 0".

An encoder of 2 blocks for the words, a decoder of 4 for the 64 codes of 32 pixels. Captions are made of the boxes of
the scenes; configs/tokenizer/demo_vitvq.py says how scenes and tokenizer are made.
Reproduces: no published number. Parti (7.23 FID on MS-COCO, zero-shot, arXiv 2206.10789, abstract) is out of reach.
Cost: not measured.
Command: python tools/train.py configs/sequence/demo_captions.py --cfg-options tokenizer=FILE
Pictures: python tools/sample.py WORK_DIR/sequence.safetensors --text "a 2 left of a 0" --guidance 3 --out grid.png
"""

_base_ = "../tokenizer/demo_vitvq.py"

data_root = "work_dirs/scenes"
tokenizer = None
words = ["a", "left", "of", "above", "0", "1", "2"]
text_tokens = 6
epochs = 60
warmup_epochs = 2
model = dict(
    _delete_=True,
    type="AdPEPretraining",
    method="sequence",
    model="sequence",
    tokenizer=tokenizer,
    condition="text",
    words=words,
    text_tokens=text_tokens,
    img_size=32,
    dim=96,
    num_heads=4,
    encoder_blocks=2,
    decoder_blocks=4,
    drop=0.1,
)
train_dataloader = dict(
    dataset=dict(
        source=data_root + "/images",
        split="training",
        captions=dict(file=data_root + "/instances_training.json", words=words, length=text_tokens),
    )
)
record = dict(method="image sequence model")
