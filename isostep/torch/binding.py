"""An optimizer's groups, tensors and state, bound to a stepper.

A binding is made when a step needs it and thrown away when something it stands on is replaced: a
group is added, a state is loaded, a parameter's memory moves. What may change at any step (any
hyperparameter, which parameters have gradients, where the gradients lie) it looks at in every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from isostep import dialects, rules
from isostep.engines.array import ArrayRunner
from isostep.engines.cohort import Runner
from isostep.engines.native import NativeRunner
from isostep.plan import Plan
from isostep.report import Report
from isostep.rules.base import is_on
from isostep.stepper import Engine, HyperGroup, Options, Stepper
from isostep.torch.lazy import densified, row_runner
from isostep.torch.namespace import TorchNamespace
from isostep.torch.options import Extras
from isostep.torch.slots import StateTensors, StepCounts, unkept
from isostep.torch.tensors import DTYPE_NAMES, numpy_view, stand_in


class Binding:
    """A stepper over the parameters of one optimizer.

    Args:
        optimizer: whose groups and state are used.
        extras: the options that torch.optim does not have.
        iteration: how many steps the optimizer has had.
        dry: take all parameters in and allocate nothing, for a plan.
    """

    def __init__(self, optimizer: Any, extras: Extras, iteration: int, dry: bool = False) -> None:
        self._optimizer, self._extras = optimizer, extras
        self._rule = rules.get(optimizer.rule)
        self._spelling = dialects.get("torch").spelling(self._rule)
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._names = _names(optimizer.param_groups)
        self._group_of = [
            k for k, group in enumerate(optimizer.param_groups) for _ in group["params"]
        ]
        self.engine: Engine = _choose_engine(self._params, optimizer.param_groups)
        self._seen: list[Any] = []
        self.stepper = self._make_stepper(dry)
        self.stepper.iteration = iteration
        self._counts = StepCounts(optimizer.state, optimizer.keeps_step)
        # The leaves of the stepper: parameters in the order in which they got a gradient.
        self._places: list[int] = []
        self._here: list[torch.Tensor] = []
        self._where: list[int] = []
        self._strides: list[tuple[int, ...]] = []
        self._pattern: list[bool] = []
        self._grads: list[Any] = []
        self._addresses = np.zeros(0, dtype=np.int64)
        if dry:
            self._take(list(range(len(self._params))), count=False)

    def _make_stepper(self, dry: bool) -> Stepper:
        extras = self._extras
        by_name = dict(zip(self._names, self._params, strict=True))
        keep = StateTensors(self._optimizer.state, self._spelling, by_name, self.engine)
        own = extras.dialect == "torch"
        options = Options(
            clip=extras.clip,
            ema=extras.ema,
            decay=extras.decay,
            nonfinite=extras.nonfinite,
            unscale=True,
            master_weights=extras.master_weights,
            state_dtype=extras.state_dtype_name,
            report=extras.report,
        )
        return Stepper(
            self._rule,
            extras.style,
            self._spelling if own else extras.style.spelling(self._rule),
            self._hyper_groups(),
            options,
            self.engine,
            unkept if dry else keep,
            TorchNamespace(),
        )

    # -- hyperparameters, which may be edited between any two steps ------------------------------

    def _hyper_groups(self) -> list[HyperGroup]:
        groups = self._optimizer.param_groups
        self._seen = [self._raw(group) for group in groups]
        return [
            HyperGroup(
                f"group {index}",
                self._values(group),
                maximize=bool(group.get("maximize")),
                decay="decoupled" if group.get("decoupled_weight_decay") else None,
            )
            for index, group in enumerate(groups)
        ]

    def _raw(self, group: dict[str, Any]) -> list[Any]:
        own = [_plain(group[a]) for a in self._spelling.arguments if a in group]
        return own + [group.get(a) for a in ("maximize", "decoupled_weight_decay", "lr_ratio")]

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        given = {a: _plain(group[a]) for a in self._spelling.arguments if a in group}
        values = self._spelling.resolve(self._rule, given)
        if self._extras.dialect != "torch":
            values |= self._extras.style.spelling(self._rule).fixed
        return values | {"lr": values["lr"] * group.get("lr_ratio", 1.0)}

    def _refresh_groups(self) -> None:
        if [self._raw(group) for group in self._optimizer.param_groups] == self._seen:
            return
        before = [self._code(g) for g in self.stepper.groups]
        for live, new in zip(self.stepper.groups, self._hyper_groups(), strict=True):
            live.values, live.maximize, live.decay = new.values, new.maximize, new.decay
        if [self._code(g) for g in self.stepper.groups] != before:
            self.stepper.refresh()

    def _code(self, group: HyperGroup) -> Any:
        """What of a group selects code."""
        static = [v for k, v in group.values.items() if self._rule.hyperparameter(k).static]
        on = [is_on(v) for v in group.values.values()]
        return (static, on, group.maximize, group.decay)

    # -- steps -----------------------------------------------------------------------------------

    def moved(self) -> bool:
        """Whether the memory of a parameter was replaced (`model.to(...)`, `p.data = ...`)."""
        return [p.data_ptr() for p in self._here] != self._where

    def step(self, loss_scale: float) -> Report | None:
        """One step; gradients are divided by `loss_scale`."""
        self._refresh_groups()
        grads: list[Any] = [p.grad for p in self._params]
        pattern = [g is not None for g in grads]
        if pattern != self._pattern:
            known = set(self._places)
            self._take([k for k, has in enumerate(pattern) if has and k not in known])
            self._pattern = pattern
        grads = [grads[place] for place in self._places]
        try:
            rows, row_values = self._rows(grads)
            dtypes = self._collect(grads)
            report = self.stepper.step(dtypes, self._bind, loss_scale, rows)
            self._tell_autograd(grads)
            del row_values
        finally:
            self._grads = []
        self._counts.write(self.stepper.steps)
        return report

    def _take(self, places: list[int], count: bool = True) -> None:
        """Take parameters in that have a gradient for the first time."""
        native = self.engine == "native"
        steps: list[int] = []
        for place in places:
            param = self._params[place]
            array = numpy_view(param) if native else stand_in(param)
            steps.append(self._counts.read(param))
            name, group = self._names[place], self._group_of[place]
            self.stepper.add(name, array, group, steps[-1], None if native else param)
        self._places += places
        if count and places:
            self._counts.add([self._params[k] for k in places], steps)
        self._here = [self._params[k] for k in self._places]
        self._where = [p.data_ptr() for p in self._here]
        self._strides = [p.stride() for p in self._here]

    def _rows(self, grads: list[Any]) -> tuple[list[Runner], list[Any]]:
        """Cohorts for sparse gradients of a lazy optimizer, whose place in `grads` becomes None."""
        runners: list[Runner] = []
        values: list[Any] = []
        if not self._extras.lazy:
            return runners, values
        for k, g in enumerate(grads):
            if g is not None and g.is_sparse:
                made = row_runner(self.stepper, k, g)
                grads[k] = None
                if made is not None:
                    runners.append(made[0])
                    values.append(made[1])
        return runners, values

    def _collect(self, grads: list[Any]) -> tuple[str | None, ...]:
        """Keep the gradients of this step, dense, and return their dtypes."""
        plain = not any(leaf.staged for leaf in self.stepper.leaves)
        try:
            plain = plain and [g.stride() for g in grads] == self._strides
        except (AttributeError, RuntimeError):  # a None, or a sparse one
            plain = False
        self._grads = grads
        if not plain:
            self._grads = [self._dense(k, g) for k, g in enumerate(grads)]
        if self.engine == "native":
            self._addresses = np.array([_address(g) for g in self._grads], dtype=np.int64)
        return tuple([None if g is None else DTYPE_NAMES[g.dtype] for g in grads])

    def _dense(self, k: int, g: Any) -> Any:
        """The gradient in its parameter's order of memory; a NumPy array if that is a copy."""
        if g is None:
            return None
        if g.is_sparse:
            group = self._optimizer.param_groups[self._group_of[self._places[k]]]
            g = densified(g, self._rule.name, group.get("weight_decay"))
        leaf = self.stepper.leaves[k]
        if self.engine == "array" or (g.stride() == self._strides[k] and not leaf.staged):
            return g
        return leaf.dense(numpy_view(g))

    def _bind(self, runner: Runner) -> None:
        members = runner.cohort.members
        if isinstance(runner, NativeRunner):
            runner.refresh("grad", self._addresses[members])
        elif isinstance(runner, ArrayRunner):
            for own, member in zip(runner.arrays, members, strict=True):
                own["grad"] = self._grads[member]

    def _tell_autograd(self, grads: list[Any]) -> None:
        """Kernels write past autograd's eyes; a graph that still needs the old values must fail."""
        if self.engine == "native":
            touched = {int(m) for r in self.stepper.last for m in r.cohort.members}
            increment_version([self._here[k] for k in sorted(touched)])

    # -- looking in ------------------------------------------------------------------------------

    @property
    def ran(self) -> list[str]:
        """What ran in the last step."""
        return [f"{r.engine} {r.cohort.layout} {r.cohort.compute_dtype}" for r in self.stepper.last]

    @property
    def source(self) -> str:
        """The source of what ran in the last step."""
        return "\n\n".join(r.source for r in self.stepper.last)

    def plan(self) -> Plan:
        """What a step in which all parameters have gradients would do."""
        return self.stepper.plan(tuple(DTYPE_NAMES[p.dtype] for p in self._here))


def _names(groups: list[dict[str, Any]]) -> list[str]:
    names = [n for g in groups for n in g.get("param_names") or [None] * len(g["params"])]
    return [str(k) if name is None else name for k, name in enumerate(names)]


def _choose_engine(params: list[torch.Tensor], groups: list[dict[str, Any]]) -> Engine:
    on_cpu = all(p.device.type == "cpu" for p in params)
    return "native" if on_cpu and not any(g.get("differentiable") for g in groups) else "array"


def _address(g: Any) -> int:
    if g is None:
        return 0
    return g.data_ptr() if isinstance(g, torch.Tensor) else g.ctypes.data


def _plain(value: Any) -> Any:
    """Hyperparameters as Python numbers: torch takes tensors for some."""
    if isinstance(value, torch.Tensor):
        return float(value)
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return value
