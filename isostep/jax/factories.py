"""The functions of optax that make an optimizer, in isostep's words and any dialect's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

from isostep import dialects, rules
from isostep.dialects import Spelling
from isostep.errors import HyperparameterError
from isostep.groups import Group, as_groups
from isostep.jax.made import Made
from isostep.jax.native import ENGINES, Engine
from isostep.jax.optimizer import Optimizer
from isostep.jax.own import MASKS, Own
from isostep.rates import group_values
from isostep.recipe import EMA, Clip, as_ema
from isostep.stepper import Options

DTYPES = {
    "mu_dtype": "exp_avg",
    "accumulator_dtype": "momentum_buffer",
    "dtype_momentum": "exp_avg",
}
"""optax' arguments that give the dtype of a slot, by the rule's name of the slot."""
EXTRAS = """dialect: whose names, defaults and numbers hold: `"optax"`, `"torch"`, `"keras"`,
            `"tf_keras"` or `"paddle"`; hyperparameters may also bear isostep's own names.
        clip: `isostep.Clip`, of the gradients before everything else.
        ema: `isostep.EMA`, or its momentum: a moving average of the parameters, see
            `Optimizer.averaged`.
        groups: `isostep.Group(pattern, **hyperparameters)` over the paths of leaves, such as
            `"*/bias"`; `lr_ratio` is a factor on the optimizer's learning rate, and a number as
            learning rate under a schedule is the rate at its start.
        nonfinite: `"propagate"`, or `"skip"`: a step with an infinite or NaN gradient changes
            nothing.
        master_weights: keep a float32 copy of each float16 and bfloat16 parameter, and step that.
        state_dtype: dtype of the slots, for all or by the rule's name of the slot; default: that
            of the parameter.
        report: measure norms and non-finite counts in each step; see `Optimizer.report`.
        engine: what runs `apply`: `"xla"` compiles array code, `"native"` calls isostep's kernels,
            on one CPU only; `"auto"` takes kernels where they can run and are faster."""


def _factory(optax_function: Any) -> Callable[..., Optimizer]:
    name = optax_function.__name__
    signature = inspect.signature(optax_function)

    def make(
        *args: Any,
        dialect: str = "optax",
        clip: Clip | None = None,
        ema: EMA | float | None = None,
        groups: Sequence[Group | Mapping[str, Any]] = (),
        nonfinite: str = "propagate",
        master_weights: bool = False,
        state_dtype: str | Mapping[str, str] | None = None,
        report: bool = False,
        engine: Engine = "auto",
        **hyperparameters: Any,
    ) -> Optimizer:
        spoken = dialects.get(dialect)
        if dialect == "optax":
            bound = signature.bind(*args, **hyperparameters)
            bound.apply_defaults()
            given = dict(bound.arguments)
        else:
            given = {**dict(zip(("lr",), args, strict=False)), **hyperparameters}
            if len(args) > 1:
                raise TypeError(f"{name}() takes one argument by place with dialect={dialect!r}")
        _check_choices(nonfinite, engine)
        spelling = spoken.spelling(name if dialect == "optax" else _spoken_name(name))
        rule = rules.get(spelling.rule)
        arguments = dict(given)
        masks = [given.pop(argument) for argument in MASKS if argument in given]
        dtypes = {slot: given.pop(a) for a, slot in DTYPES.items() if a in given}
        made = as_groups(groups)
        values = spelling.resolve(rule, _traceable(given, spelling))
        changed = [_of_group(spelling, rule, values, g.hyperparameters) for g in made]
        own = None
        if dialect == "optax" and _schedules(given, spelling) <= {*spoken.schedule_counts.values()}:
            own = Own(optax_function, arguments, list(spelling.slots.values()))
        options = Options(
            clip=clip,
            ema=as_ema(ema, spoken.averaging.start),
            nonfinite="skip" if nonfinite == "skip" else "propagate",
            master_weights=master_weights,
            state_dtype=_slot_dtypes(rule, dtypes, state_dtype),
            report=report,
        )
        extras = {
            "clip": clip is not None,
            "ema": ema is not None,
            "groups": bool(made),
            "nonfinite": nonfinite != "propagate",
            "master_weights": master_weights,
            "state_dtype": state_dtype is not None,
            "report": report,
        }
        return Optimizer(
            Made(
                rule,
                spoken,
                spelling,
                values,
                [(group, *held) for group, held in zip(made, changed, strict=True)],
                options,
                next((mask for mask in masks if mask is not None), None),
                engine,
                own,
                [extra for extra, asked in extras.items() if asked],
            )
        )

    extra = [p for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    make.__name__ = make.__qualname__ = name
    make.__signature__ = signature.replace(  # pyright: ignore[reportFunctionMemberAccess]
        parameters=[*signature.parameters.values(), *extra], return_annotation=Optimizer
    )
    make.__doc__ = f"""optax.{name} in one fused step: the same arguments and numbers.

    Args:
        All arguments of optax.{name}: as there.
        {EXTRAS}

    Raises:
        HyperparameterError: a value is out of range, or not allowed.
        UnknownNameError: a hyperparameter that the rule does not have; a pattern without match.
    """
    return make


def _check_choices(nonfinite: str, engine: str) -> None:
    if nonfinite not in ("propagate", "skip"):
        raise HyperparameterError(
            f"nonfinite={nonfinite!r} is not allowed: use one of propagate, skip (a compiled "
            f"step cannot raise)"
        )
    if engine not in ENGINES:
        raise HyperparameterError(
            f"engine={engine!r} is not allowed: use one of {', '.join(ENGINES)}"
        )


def _spoken_name(name: str) -> str:
    """The rule that a function of optax stands for."""
    return next(s.rule for s in dialects.get("optax").spellings.values() if s.class_name == name)


def _schedules(given: Mapping[str, Any], spelling: Spelling) -> set[str]:
    """The hyperparameters that schedules are given for."""
    arguments = spelling.arguments
    return {
        name
        for argument, value in given.items()
        if callable(value)
        for name in arguments.get(argument, (argument,))
    }


class _Constant:
    """A schedule that always gives the same array."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self, step: Any) -> Any:
        return self._value


def _of_group(
    spelling: Spelling, rule: rules.Rule, values: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """What holds for a group, and the factor on its learning rate; an array that the optimizer has
    as its learning rate is no schedule that a group's own would follow."""
    own = _traceable(given, spelling)
    fixed = isinstance(values["lr"], _Constant) and own.keys() & {"lr", "learning_rate"}
    default = {**values, "lr": 1.0} if fixed else values
    return group_values(spelling, rule, default, own, jax.ensure_compile_time_eval)


def _traceable(given: Mapping[str, Any], spelling: Spelling) -> dict[str, Any]:
    """Hyperparameters as a rule takes them. Arrays, which may be traced, become schedules that give
    them at each step; so does a number that is given for what None means, to which a rule says that
    the feature is off: only None switches it off here."""
    found: dict[str, Any] = {}
    for argument, value in given.items():
        off = [spelling.none_means.get(n) for n in spelling.arguments.get(argument, ())]
        if isinstance(value, int | float) and not isinstance(value, bool) and value in off:
            found[argument] = _Constant(float(value))
        elif not isinstance(value, jax.Array | np.ndarray):
            found[argument] = value
        elif argument not in spelling.unsupported:
            found[argument] = _Constant(value)
        elif isinstance(value, Tracer):
            raise HyperparameterError(
                f"{spelling.class_name}: {argument} is traced, and must be known: put it among the "
                f"static_args of inject_hyperparams, or leave it out"
            )
        else:
            found[argument] = value.item()
    return found


def _slot_dtypes(
    rule: rules.Rule, dtypes: Mapping[str, Any], asked: str | Mapping[str, str] | None
) -> dict[str, str]:
    """The dtype of each slot by name: what optax' arguments say, what was asked for, else the
    parameter's. Where optax' wrappers took a dtype for a schedule, an array is what is left of it.
    """
    found = {slot.name: asked if isinstance(asked, str) else "param" for slot in rule.slots}
    found |= {
        slot: jax.dtypes.canonicalize_dtype(dtype).name
        for slot, dtype in dtypes.items()
        if dtype is not None and not isinstance(dtype, jax.Array)
    }
    return found | (dict(asked) if isinstance(asked, Mapping) else {})


sgd = _factory(optax.sgd)
adagrad = _factory(optax.adagrad)
rmsprop = _factory(optax.rmsprop)
adadelta = _factory(optax.adadelta)
adam = _factory(optax.adam)
nadam = functools.partial(adam, nesterov=True)
amsgrad = _factory(optax.amsgrad)
adamw = _factory(optax.adamw)
nadamw = functools.partial(adamw, nesterov=True)
adafactor = _factory(optax.adafactor)
