"""The PyTorch front-end: drop-in classes for torch.optim.

    from isostep.torch import AdamW     # instead of: from torch.optim import AdamW

Signatures, defaults, groups, hooks and the layout of `state_dict()` are torch's own, so a
checkpoint of either goes on in the other.
"""

from __future__ import annotations

import torch.optim as _torch_optim

from isostep.torch.drop_in import drop_in
from isostep.torch.optimizer import FusedStep

SGD = drop_in(_torch_optim.SGD)
Adagrad = drop_in(_torch_optim.Adagrad)
RMSprop = drop_in(_torch_optim.RMSprop)
Adadelta = drop_in(_torch_optim.Adadelta)
Adam = drop_in(_torch_optim.Adam)
AdamW = drop_in(_torch_optim.AdamW)
Adafactor = drop_in(_torch_optim.Adafactor)

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "FusedStep",
    "RMSprop",
]
