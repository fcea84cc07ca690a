"""Adafactor, which Paddle does not have, as one of Paddle's optimizers would be."""

from __future__ import annotations

from typing import Any

import paddle

from isostep import dialects, rules
from isostep.dialects import Spelling
from isostep.functional import stand_in
from isostep.paddle.accumulators import unkept
from isostep.paddle.tensors import dtype_name
from isostep.stepper import HyperGroup, Options, Stepper

SPELLING = Spelling(
    rule="Adafactor",
    class_name="Adafactor",
    names={
        "lr": "learning_rate",
        "decay_rate": "beta2_decay",
        "eps1": "epsilon1",
        "eps2": "epsilon2",
        "clip_threshold": "clip_threshold",
        "relative_step": "relative_step",
        "weight_decay": "weight_decay",
    },
    defaults={
        "lr": 1e-3,
        "decay_rate": -0.8,
        "eps1": 1e-30,
        "eps2": 1e-3,
        "clip_threshold": 1.0,
        "relative_step": True,
        "weight_decay": None,
    },
    negated=("decay_rate",),
    none_means={"weight_decay": 0.0},
    fixed={
        "clamp_eps": False,
        "nan_rms_is_small": False,
        "parameter_scale": True,
        "factored": True,
        "largest_axes": False,
        "min_dim_to_factor": 1,
    },
    slots={"row": "moment2_row", "column": "moment2_column", "exp_avg_sq": "moment2"},
    decay="decoupled",
    formula=(
        "p -= min(lr, 1/sqrt(t)) * max(eps2, RMS(p)) * U / max(1, RMS(U)/clip_threshold); "
        "U = g / sqrt(v); v = r*c / mean r, of g^2 + eps1"
    ),
)


class AdafactorBase(paddle.optimizer.Optimizer):
    """The frame of a Paddle optimizer for Adafactor: arguments, groups and accumulators.

    Args:
        learning_rate: float or LRScheduler; with `relative_step` at most 1/sqrt(t) is taken of it.
        beta2_decay: the second moment's decay rate is 1 - t^beta2_decay; <= 0.
        epsilon1: added to squared gradients; >= 0.
        epsilon2: least root mean square of a parameter; >= 0.
        clip_threshold: bound of the root mean square of an update; > 0.
        relative_step: bound the learning rate by 1/sqrt(t).
        parameters, grad_clip, multi_precision, name: as in Paddle's other optimizers.
        weight_decay: decoupled, times the learning rate; number or None.

    Raises:
        ValueError: a value is out of its range.
        TypeError: as Paddle's optimizers.

    Source: Shazeer and Stern, arXiv:1804.04235.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta2_decay: float = -0.8,
        epsilon1: float = 1e-30,
        epsilon2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        parameters: Any = None,
        weight_decay: float | None = None,
        grad_clip: Any = None,
        multi_precision: bool = False,
        name: str | None = None,
    ) -> None:
        own = {
            "beta2_decay": beta2_decay,
            "epsilon1": epsilon1,
            "epsilon2": epsilon2,
            "clip_threshold": clip_threshold,
            "relative_step": relative_step,
            "weight_decay": weight_decay,
        }
        SPELLING.resolve(rules.get("Adafactor"), own)
        for argument, value in own.items():
            setattr(self, f"_{argument}", value)
        self._weight_decay = weight_decay
        self._multi_precision = multi_precision
        # Not Paddle's regularisation, which is coupled.
        super().__init__(learning_rate, parameters, None, grad_clip, name)

    def _add_param_group(self, param_group: dict[str, Any]) -> None:
        decay = param_group.get("weight_decay", self._weight_decay)
        super()._add_param_group(param_group | {"weight_decay": None})
        added: Any = self._param_groups
        added[-1]["weight_decay"] = decay

    def _create_accumulators(self, block: Any, parameters: Any) -> None:
        for param in parameters["params"] if isinstance(parameters, dict) else parameters:
            if param.name in self._already_create_accumulator:
                continue
            low = self._multi_precision and self._is_dtype_fp16_or_bf16(param.dtype)
            kept = self._create_master_weight(param) if low else param
            wide = "float64" if dtype_name(param.dtype) == "float64" else "float32"
            for slot, shape in _slot_shapes(tuple(param.shape), wide).items():
                self._add_accumulator(SPELLING.slots[slot], kept, dtype=wide, shape=list(shape))
            self._already_create_accumulator.add(param.name)


def _slot_shapes(shape: tuple[int, ...], dtype: str) -> dict[str, tuple[int, ...]]:
    """The shape of each slot of a parameter."""
    rule = rules.get("Adafactor")
    groups = [HyperGroup("", SPELLING.resolve(rule, {}))]
    own = stand_in(shape, dtype)
    made = Stepper(rule, dialects.get("paddle"), SPELLING, groups, Options(), "array", unkept)
    leaf = made.add("", own, 0, own=own)
    slots = rule.active_slots(made.recipe(leaf).o)
    return {slot.name: leaf.slot_shape(slot.per) for slot in slots}
