"""The Paddle front-end: drop-in classes for paddle.optimizer.

    from isostep.paddle import AdamW     # instead of: from paddle.optimizer import AdamW

Signatures, defaults, groups, schedulers and the keys of `state_dict()` are Paddle's own, so a
`.pdopt` file of either goes on in the other.
"""

from __future__ import annotations

import paddle.optimizer as _paddle_optimizer

from isostep.paddle.adafactor import SPELLING as _ADAFACTOR
from isostep.paddle.adafactor import AdafactorBase as _AdafactorBase
from isostep.paddle.drop_in import drop_in
from isostep.paddle.optimizer import FusedStep

SGD = drop_in(_paddle_optimizer.SGD)
Momentum = drop_in(_paddle_optimizer.Momentum)
Adagrad = drop_in(_paddle_optimizer.Adagrad)
RMSProp = drop_in(_paddle_optimizer.RMSProp)
Adadelta = drop_in(_paddle_optimizer.Adadelta)
Adam = drop_in(_paddle_optimizer.Adam)
AdamW = drop_in(_paddle_optimizer.AdamW)
Adafactor = drop_in(_AdafactorBase, _ADAFACTOR)

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "FusedStep",
    "Momentum",
    "RMSProp",
]
