"""An optimizer's groups, tensors and state, bound to a stepper.

A binding is made when a step needs it and thrown away when something it stands on is replaced: a
group is added, a state is loaded or edited, a parameter's memory moves. What may change at any step
(any hyperparameter, which parameters have gradients, where the gradients lie) it looks at in every
step.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _device_dtype_check_for_fused as check_fused

from isostep.engines.array import ArrayRunner
from isostep.engines.cohort import Runner
from isostep.engines.native import NativeRunner
from isostep.errors import HyperparameterError
from isostep.plan import Plan
from isostep.report import Report
from isostep.rules import Rule
from isostep.stepper import Engine, Options, Stepper
from isostep.torch.addresses import addresses
from isostep.torch.gradients import Gradients
from isostep.torch.hyper import Hyperparameters
from isostep.torch.lazy import RowRunners
from isostep.torch.masters import Masters
from isostep.torch.namespace import TorchNamespace
from isostep.torch.options import Extras
from isostep.torch.overlap import layers
from isostep.torch.slots import StateTensors, StepCounts, unkept
from isostep.torch.tensors import DTYPE_NAMES, Held, check_steppable, numpy_view, stand_in

_dtype = operator.attrgetter("dtype")


class Binding:
    """A stepper over the parameters of one optimizer.

    Args:
        rule: the mathematics.
        extras: the options that torch.optim does not have.
        groups, state: the optimizer's own, read and written in place.
        keeps_step: whether torch's class keeps a `step` for each parameter.
        iteration: how many steps the optimizer has had.
        dry: take all parameters in and allocate nothing, for a plan.
    """

    def __init__(
        self,
        rule: Rule,
        extras: Extras,
        groups: list[dict[str, Any]],
        state: Any,
        keeps_step: bool,
        iteration: int,
        dry: bool = False,
    ) -> None:
        self.groups, self.state = groups, state
        self._params: list[torch.Tensor] = [p for group in groups for p in group["params"]]
        self._names = _names(groups)
        self._group_of = [k for k, group in enumerate(groups) for _ in group["params"]]
        self._differentiable = _differentiable(groups)
        self.engine: Engine = choose_engine(self._params, self._differentiable)
        self._check(extras)
        self._hyper = Hyperparameters(rule, extras)
        self._seen = self._hyper.raw(groups)
        slots = self._hyper.torch.slots
        by_name = dict(zip(self._names, self._params, strict=True))
        self._kept = StateTensors(state, slots, by_name, self.engine)
        self._counts = StepCounts(state, keeps_step, slots, self._kept.own)
        self._keeps_step = keeps_step
        self.stepper = self._make_stepper(rule, extras, dry)
        self.stepper.iteration = iteration
        self._grads = Gradients(self.stepper, self.engine, rule.name)
        self._rows = RowRunners(self.stepper) if extras.lazy else None
        self._masters = Masters()
        # The leaves of the stepper: parameters in the order in which they got a gradient.
        self._places: list[int] = []
        self._here: list[torch.Tensor] = []
        self._where = addresses([])
        self._dtypes: list[torch.dtype] = []
        self._touched: tuple[list[Runner], list[torch.Tensor]] = ([], [])
        if dry:
            self._take(list(range(len(self._params))), dry=True)

    def _check(self, extras: Extras) -> None:
        if extras.lazy and self.engine != "native":
            raise HyperparameterError(
                "lazy=True needs parameters on the CPU and differentiable=False"
            )

    def _make_stepper(self, rule: Rule, extras: Extras, dry: bool) -> Stepper:
        hyper = self._hyper
        options = Options(
            clip=extras.clip,
            ema=extras.ema,
            decay=extras.decay,
            nonfinite=extras.nonfinite,
            unscale=True,
            master_weights=extras.master_weights,
            state_dtype=extras.slot_dtypes(hyper.torch.slots),
            report=extras.report,
        )
        allocate = unkept if dry else self._kept
        groups = hyper.groups(self.groups)
        return Stepper(
            rule,
            extras.style,
            hyper.style,
            groups,
            options,
            self.engine,
            allocate,
            TorchNamespace(),  # pyright: ignore[reportArgumentType]
        )

    # -- what may have been replaced since the last step -----------------------------------------

    def stale(self, groups: list[dict[str, Any]], state: Any) -> bool:
        """Whether this binding no longer fits the optimizer: a parameter's memory was replaced
        (`model.to(...)`, `p.data = ...`), or its state was."""
        return (
            groups is not self.groups
            or state is not self.state
            or self.outgrown(groups)
            or not np.array_equal(addresses(self._here), self._where)
            or list(map(_dtype, self._here)) != self._dtypes
            or _differentiable(groups) != self._differentiable
            or self._counts.edited()
            or self._kept.replaced()
        )

    def outgrown(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the groups have more or fewer parameters than this binding."""
        return sum([len(group["params"]) for group in groups]) != len(self._params)

    def _refresh_groups(self) -> None:
        """Follow edits of the param groups."""
        raw = self._hyper.raw(self.groups)
        if raw == self._seen:
            return
        new = self._hyper.groups(self.groups)
        self._seen = raw
        live = self.stepper.groups
        before = [self._hyper.code(g) for g in live]
        for old, now in zip(live, new, strict=True):
            old.values, old.maximize, old.decay = now.values, now.maximize, now.decay
        if [self._hyper.code(g) for g in live] != before:
            if not self._keeps_step:  # what counts is whether a slot is there
                self.stepper.steps[:] = [self._counts.read(p) for p in self._here]
            self.stepper.refresh()
            self._kept.watch()

    # -- steps -----------------------------------------------------------------------------------

    def step(self, loss_scale: float) -> Report | None:
        """One step; gradients are divided by `loss_scale`."""
        self._refresh_groups()
        grads = self._current()
        self._masters.refresh()
        rows = [] if self._rows is None else self._rows.split(grads)
        try:
            dtypes = self._grads.collect(grads, self._weight_decay)
            before = self.stepper.iteration
            try:
                report = self.stepper.step(dtypes, self._bind, loss_scale, rows)
            finally:  # also where an interrupt has waited for the step
                if self.stepper.iteration != before:
                    self._finish()
        finally:
            self._grads.release()
            if self._rows is not None:
                self._rows.release()
        return report

    def _current(self) -> list[Any]:
        """The gradients of now, in the order of the stepper's leaves."""
        if len(self._here) == len(self._params):
            return [p.grad for p in self._here]
        known = set(self._places)
        new = [k for k, p in enumerate(self._params) if p.grad is not None and k not in known]
        if new:
            self._take(new)
        return [p.grad for p in self._here]

    def _weight_decay(self, index: int) -> Any:
        return self.groups[self._group_of[self._places[index]]].get("weight_decay")

    def _finish(self) -> None:
        """What follows a step that was not skipped."""
        if self._rows is not None:
            self._rows.count_empty()
        self._counts.write(self.stepper.steps)
        if self.engine == "native":
            # Kernels write past autograd's eyes; a graph that needs the old values must fail.
            runners = self.stepper.last
            if runners != self._touched[0]:
                members = {int(m) for r in runners for m in r.cohort.members}
                self._touched = (runners, [self._here[k] for k in sorted(members)])
            increment_version(self._touched[1])
        self._masters.stepped()

    def _take(self, places: list[int], dry: bool = False) -> None:
        """Take parameters in that have a gradient for the first time."""
        native = self.engine == "native"
        params = [self._params[place] for place in places]
        for place, param in zip(places, params, strict=True):
            check_steppable(param, self._names[place], self.stepper.rule.name)
        steps = [self._counts.read(param) for param in params]
        for place, param, count in zip(places, params, steps, strict=True):
            if not count and self.groups[self._group_of[place]].get("fused"):
                check_fused(param)  # which torch does at the first step
        for place, param, count in zip(places, params, steps, strict=True):
            array = numpy_view(param) if native else stand_in(param)
            own = None if native else Held(param)
            leaf = self.stepper.add(self._names[place], array, self._group_of[place], count, own)
            if own is not None and not leaf.in_order:
                own.tensor = param.permute(leaf.order)
            if "model" in leaf.arrays and not dry:
                self._masters.add(param, self.state[param])
        self._places += places
        self._here = [self._params[k] for k in self._places]
        self._where = addresses(self._here)
        self._dtypes = list(map(_dtype, self._here))  # another may come to lie in the same place
        self._grads.laid_out(self._here)
        if native:
            layers(self.stepper.leaves)
        if not dry:
            self._counts.add(params, steps)
            self._kept.watch()

    def _bind(self, runner: Runner) -> None:
        members = runner.cohort.members
        if isinstance(runner, NativeRunner):
            runner.refresh("grad", self._grads.addresses[members])
        elif isinstance(runner, ArrayRunner):
            for own, member in zip(runner.arrays, members, strict=True):
                own["grad"] = Held(self._grads.tensors[member])

    # -- looking in ------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What a step in which all parameters have gradients would do."""
        return self.stepper.plan(tuple(DTYPE_NAMES[p.dtype] for p in self._here))


def _names(groups: list[dict[str, Any]]) -> list[str]:
    """A name for each parameter, of which no two are the same."""
    names = [n for g in groups for n in g.get("param_names") or [None] * len(g["params"])]
    found: set[str | None] = set()
    result: list[str] = []
    for k, name in enumerate(names):
        result.append(str(k) if name is None else f"{name} ({k})" if name in found else name)
        found.add(name)
    return result


def choose_engine(params: list[torch.Tensor], differentiable: bool) -> Engine:
    """Kernels where all parameters are on the CPU and autograd need not look on."""
    on_cpu = all(p.device.type == "cpu" for p in params)
    return "native" if on_cpu and not differentiable else "array"


def _differentiable(groups: list[dict[str, Any]]) -> bool:
    return any(group.get("differentiable") for group in groups)
