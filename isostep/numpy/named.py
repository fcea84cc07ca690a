"""One class for each built-in rule."""

from __future__ import annotations

from typing import Any, ClassVar

from isostep import rules
from isostep.numpy.optimizer import Optimizer


class RuleOptimizer(Optimizer):
    """An optimizer whose rule is its class's; otherwise as `Optimizer`."""

    _rule: ClassVar[str]

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(self._rule, params, **options)


def _class_of(name: str) -> type[RuleOptimizer]:
    rule = rules.get(name)
    described = "\n".join(
        f"        {h.name}: {h.meaning}, in {h.range}." for h in rule.hyperparameters
    )
    documentation = (
        f"{name} over NumPy arrays, updated in place.\n\n"
        f"    Args:\n        params: see `Optimizer`, which also lists the options.\n{described}\n"
    )
    own = {"_rule": name, "__doc__": documentation, "__module__": "isostep.numpy"}
    return type(name, (RuleOptimizer,), own)


SGD = _class_of("SGD")
Adagrad = _class_of("Adagrad")
RMSprop = _class_of("RMSprop")
Adadelta = _class_of("Adadelta")
Adam = _class_of("Adam")
AdamW = _class_of("AdamW")
Adafactor = _class_of("Adafactor")
