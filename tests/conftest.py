from __future__ import annotations

import torch

# Small tensors: one thread is the fastest, and the same on every machine.
torch.set_num_threads(1)
