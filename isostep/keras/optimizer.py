"""The step that replaces Keras': one fused pass over all variables of a model.

`FusedApply` goes before a class of keras.optimizers. Constructor, variables, configuration, saving
and learning rate stay Keras' own; only what happens to variables in `apply` is isostep's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from keras import backend

from isostep import dialects, rules
from isostep.engines.leaf import Leaf
from isostep.errors import HyperparameterError
from isostep.groups import Group, as_groups, assign
from isostep.keras.traced import TracedApply
from isostep.keras.variables import ATTRIBUTES, stand_in
from isostep.plan import Plan
from isostep.recipe import EMA, Clip
from isostep.stepper import Engine, HyperGroup, Options, Stepper

NONFINITE = ("propagate", "skip")


class FusedApply:
    """The fused step, for a class of keras.optimizers that follows it in the bases."""

    rule: ClassVar[str]

    def __init__(
        self,
        *args: Any,
        groups: Sequence[Group | Mapping[str, Any]] = (),
        nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if nonfinite not in NONFINITE:
            raise HyperparameterError(
                f"nonfinite={nonfinite!r} is not allowed: use one of {', '.join(NONFINITE)} "
                f"(a compiled step cannot raise)"
            )
        self._nonfinite = nonfinite
        self._groups = as_groups(groups)
        self._bound: Any = None

    # -- what Keras calls ------------------------------------------------------------------------

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        if self._replicas() > 1:  # one variable at a time, by `update_step`
            super()._backend_apply_gradients(grads, trainable_variables)  # pyright: ignore
            return
        self._engine().apply(list(grads), list(trainable_variables))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Step one variable; Keras has clipped its gradient and decayed it before."""
        TracedApply(self).update(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()  # pyright: ignore[reportAttributeAccessIssue]
        if self._groups:
            config["groups"] = [
                {"match": list(g.patterns), **g.hyperparameters} for g in self._groups
            ]
        if self._nonfinite != "propagate":
            config["nonfinite"] = self._nonfinite
        return config

    def _replicas(self) -> int:
        strategy = getattr(self, "_distribution_strategy", None)
        return 1 if strategy is None else int(strategy.num_replicas_in_sync)

    def _engine(self) -> Any:
        if self._bound is None:
            if backend.backend() == "torch":
                from isostep.keras.on_torch import NativeApply

                self._bound = NativeApply(self)
            else:
                self._bound = TracedApply(self)
        return self._bound

    # -- what a step stands on -------------------------------------------------------------------

    def hyper_groups(self, variables: list[Any]) -> tuple[list[HyperGroup], list[int]]:
        """The groups of hyperparameters, and the group of each variable.

        A learning rate of None in them is the optimizer's, which each step reads anew.
        """
        rule = rules.get(self.rule)
        spelling = dialects.get("keras").spelling(rule)
        given = {a: getattr(self, a) for a in spelling.arguments if a != "learning_rate"}
        names = [v.path for v in variables]
        places = assign(names, self._groups)
        own: list[dict[str, Any]] = [{}, *(dict(g.hyperparameters) for g in self._groups)]
        found: dict[tuple[int, bool], int] = {}
        groups: list[HyperGroup] = []
        membership: list[int] = []
        for variable, place in zip(variables, places, strict=True):
            key = (place + 1, bool(self._use_weight_decay(variable)))  # pyright: ignore
            if key not in found:
                found[key] = len(groups)
                changed = spelling.resolve(rule, {"learning_rate": 1.0, **given, **own[key[0]]})
                if not own[key[0]].keys() & {"learning_rate", "lr"}:
                    changed["lr"] = None
                if not key[1]:
                    changed["weight_decay"] = 0.0
                title = ", ".join(self._groups[place].patterns) if place >= 0 else "(default)"
                groups.append(HyperGroup(title + ("" if key[1] else ", no decay"), changed))
            membership.append(found[key])
        return groups, membership

    def options(self, averaged: bool) -> Options:
        """What a step does besides the rule."""
        clips = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}
        given = {kind: getattr(self, argument) for kind, argument in clips.items()}
        given = {kind: float(v) for kind, v in given.items() if v}
        ema = None
        if averaged:
            start = dialects.get("keras").averaging.start
            ema = EMA(self.ema_momentum, self.ema_overwrite_frequency, start)  # pyright: ignore
        return Options(
            clip=Clip(**given) if given else None,
            ema=ema,
            nonfinite="skip" if self._nonfinite == "skip" else "propagate",
            state_dtype="param",
        )

    def stepper(self, engine: Engine, averaged: bool, arrays: Any, allocate: Any) -> Stepper:
        """A stepper over the variables that this optimizer was built with.

        Args:
            engine: what runs passes.
            averaged: whether steps keep the moving average.
            arrays: gives the array of a variable.
            allocate: finds the arrays that are kept.
        """
        variables = self._trainable_variables  # pyright: ignore[reportAttributeAccessIssue]
        groups, membership = self.hyper_groups(variables)
        rule, dialect = rules.get(self.rule), dialects.get("keras")
        spelling = dialect.spelling(rule)
        made = Stepper(rule, dialect, spelling, groups, self.options(averaged), engine, allocate)
        for index, (variable, group) in enumerate(zip(variables, membership, strict=True)):
            own = None if engine == "native" else stand_in(variable)
            made.add(str(index), arrays(variable), group, own=own)
        return made

    def kept(self, leaf: Leaf, name: str) -> Any:
        """The Keras variable that holds slot `name` of a leaf."""
        if name == "average":
            return self._model_variables_moving_average[int(leaf.name)]  # pyright: ignore
        return getattr(self, ATTRIBUTES[self.rule][name])[int(leaf.name)]

    # -- what Keras does not have ----------------------------------------------------------------

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each variable; nothing runs.

        Raises:
            HyperparameterError: the optimizer was not built yet.
        """
        if not self.built:  # pyright: ignore[reportAttributeAccessIssue]
            raise HyperparameterError("plan() needs variables: call optimizer.build(variables)")
        engine: Engine = "native" if backend.backend() == "torch" else "array"

        def allocate(leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
            return stand_in(self.kept(leaf, name)).reshape(-1)

        averaged = bool(self.use_ema)  # pyright: ignore[reportAttributeAccessIssue]
        made = self.stepper(engine, averaged, stand_in, allocate)
        for leaf, variable in zip(made.leaves, self._trainable_variables, strict=True):  # pyright: ignore
            leaf.name = variable.path
        return made.plan(tuple(leaf.array.dtype.name for leaf in made.leaves))

    @property
    def ran(self) -> list[str]:
        """What ran in the last step: engine, layout and dtype of each kernel, or the backend."""
        return [] if self._bound is None else self._bound.ran
