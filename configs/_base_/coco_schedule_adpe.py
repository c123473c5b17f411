"""The AdPE repository's schedule on COCO: batch 32, 400,000 iterations, ViTDet's learning rate x 0.5 (its README).

It lengthens ViTDet's schedule by command line, which stretches everything that detectron2 keeps as a share of the
length: the steps to 8/9 and 26/27 of 400,000, and the 250 iterations of warm-up to 542.
"""

_base_ = "./coco_schedule_vitdet.py"

max_iters = 400000
warmup_iters = round(250 / 184375 * max_iters)
effective_batch = 32
lr = 5e-5
