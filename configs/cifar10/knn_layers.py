"""k-NN accuracy of the class token of every block on CIFAR-10, k = 20, votes weighted with temperature 0.07.

Reproduces: no published number; the curve is SDSSL's (arXiv 2111.12958), whose encoders it compares with their
baselines. --cfg-options model.global_pool=avg takes the mean of the patch tokens instead, for encoders whose class
token is not trained. The work directory has the curve as layers.png.
Cost: not measured; features of all blocks are held in memory.
Command: python tools/evaluate.py configs/cifar10/knn_layers.py CHECKPOINT... --cfg-options data_root=ARCHIVE
"""

_base_ = "./knn.py"

model = dict(global_pool="token")
evaluation = dict(type="knn_layers")
