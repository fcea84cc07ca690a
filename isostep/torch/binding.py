"""An optimizer's groups, tensors and state, bound to a stepper.

A binding is made whole when a step needs it and thrown away when something it stands on is not what
it was: parameters in the groups, entries of the state, any tensor's memory, a hyperparameter that
selects code. It grows where further parameters have gradients. What may change at any step
(numbers, which parameters have gradients, where the gradients lie) it looks at in every step.
Nothing that users see is written before the kernels: a slot of zeros would look like a step that
there was not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
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
from isostep.torch import watch
from isostep.torch.counts import StepCounts, find
from isostep.torch.crew import CREW
from isostep.torch.gradients import Gradients
from isostep.torch.hyper import Hyperparameters
from isostep.torch.lazy import RowRunners
from isostep.torch.masters import Masters
from isostep.torch.members import Groups, Kept, Members
from isostep.torch.namespace import TorchNamespace
from isostep.torch.options import Extras
from isostep.torch.overlap import Stretches, bounds, check_apart, layers, out_of_turn
from isostep.torch.own_step import NotOurs, odd, repeated
from isostep.torch.slots import MASTER, StateTensors, kept_of, unkept
from isostep.torch.tensors import DTYPE_NAMES, Held, check_steppable, numpy_view, oddity, stand_in


class Binding:
    """A stepper over those parameters of an optimizer that have had a gradient.

    Args:
        rule: the mathematics.
        extras: the options that torch.optim does not have.
        groups, state: the optimizer's own.
        keeps_step: whether torch's class keeps a `step` for each parameter.
        before: the stepper, or what counts for it, that the last step was of.
        dry: take all parameters in and allocate nothing, for a plan.
        wide: take those in as well that have no gradient and a state, so that the binding fits
            when other parameters have gradients.

    Raises:
        NotOurs: a step of these is torch.optim's own.
        HyperparameterError, ParameterError, StateError: a value, parameter or state is refused.
        KeyError: a group lacks a hyperparameter.
    """

    def __init__(
        self,
        rule: Rule,
        extras: Extras,
        groups: Groups,
        state: Any,
        keeps_step: bool,
        before: Any,
        dry: bool = False,
        wide: bool = False,
    ) -> None:
        self.members = Members(groups)
        twice = repeated(groups)
        if twice is not None and not dry:
            raise NotOurs(twice)
        self._extras, self._rule, self._state = extras, rule, state
        self._differentiable = _differentiable(groups)
        self.engine: Engine = choose_engine(self.members.params, self._differentiable)
        self._check(extras)
        self._hyper = Hyperparameters(rule, extras)
        self._seen = self._hyper.raw(groups)
        self._settings = groups
        self._places: list[int] = []
        self._here: list[torch.Tensor] = []
        self._names: list[str] = []
        self._tensors = StateTensors(state, self._hyper.torch.slots, self.engine)
        self._memory = self._memory_of_state = bounds([])
        self._counts = StepCounts() if keeps_step and not dry else None
        self._masters = Masters()
        self._grads: Any = None
        self.stepper = self._make_stepper(groups, unkept if dry else self._tensors)
        self.stepper.iteration, self.stepper.skipped = before.iteration, before.skipped
        self.odd = "" if twice is None else twice.why
        """What makes a dry binding's parameters torch's own to step."""
        self._take(self._wanted(dry, wide), dry)
        if not dry:
            self._look()

    def _check(self, extras: Extras) -> None:
        if extras.lazy and self.engine != "native":
            raise HyperparameterError(
                "lazy=True needs parameters on the CPU and differentiable=False"
            )

    def _make_stepper(self, groups: Groups, allocate: Any) -> Stepper:
        hyper, extras = self._hyper, self._extras
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
        return Stepper(
            self._rule,
            extras.style,
            hyper.style,
            hyper.groups(groups),
            options,
            self.engine,
            allocate,
            TorchNamespace(),  # pyright: ignore[reportArgumentType]
            CREW,
        )

    # -- taking parameters in --------------------------------------------------------------------

    def _wanted(self, dry: bool, wide: bool) -> list[int]:
        """The places of the parameters to be stepped: those with a gradient, as in torch, and those
        whose average goes on without one."""
        averages, state = self._extras.ema is not None, self._state
        return [
            k
            for k, p in enumerate(self.members.params)
            if dry
            or p.grad is not None
            or (wide and kept_of(state, p))
            or (averages and "average" in kept_of(state, p))
        ]

    def grow(self) -> None:
        """Take those parameters in as well that have their first gradient now.

        Raises:
            As the constructor does; then the binding is of no use any more.
        """
        late = [k for k in self._others if self.members.params[k].grad is not None]
        if late:
            with torch.inference_mode(False):  # tensors of the state outlive it
                self._take(late, dry=False)
                if self._counts is not None:
                    self.stepper.steps[:] = self._counts.steps
                self._look()

    @property
    def presumes(self) -> bool:
        """Whether it would write to the state of a parameter that has no gradient."""
        return any(p.grad is None for p in self._tensors.fresh)

    def _take(self, places: list[int], dry: bool) -> None:
        params = [self.members.params[k] for k in places]
        names = [self.members.names[k] for k in places]
        whys = list(map(oddity, params))
        for param, name, why in zip(params, names, whys, strict=True):
            self.odd = self.odd or why
            if why and not dry:
                raise odd(f"parameter {name!r}", why)
            check_steppable(param, name, self._rule.name)
        steps = [0] * len(places) if dry else self._steps(names, params)
        for place, param, count in zip(places, params, steps, strict=True):
            if not count and self._settings[self.members.group_of[place]].get("fused"):
                check_fused(param)  # which torch does at the first step
        each = zip(places, params, names, steps, whys, strict=True)
        for place, param, name, count, why in each:
            self._tensors.params[name] = param
            self._add(place, param, int(count), bool(why))
            if (name, MASTER) in self._tensors.found:
                self._masters.add(param, self._tensors.found[name, MASTER])
        self._places += places
        self._here += params
        self._names += names
        here = set(self._places)
        self._others = [k for k in range(len(self.members.params)) if k not in here]
        plain = [p for p, why in zip(params, whys, strict=True) if not why]
        self._memory = np.concatenate([self._memory, bounds(plain)])
        if self.engine == "native" and not self.odd:
            layers(self.stepper.leaves, self._places, self._memory)
        why = "" if self.odd else out_of_turn(self.stepper, self._memory)
        self.odd = self.odd or why
        if why and not dry:
            raise odd("a parameter", why)

    def _add(self, place: int, param: torch.Tensor, count: int, odd: bool) -> None:
        name, group = self.members.names[place], self.members.group_of[place]
        if self.engine == "native" and not odd:
            self.stepper.add(name, numpy_view(param), group, count)
            return
        own = Held(param)
        leaf = self.stepper.add(name, stand_in(param), group, count, own)
        if not leaf.in_order:
            own.tensor = param.permute(leaf.order)

    def _steps(self, names: list[str], params: list[torch.Tensor]) -> Any:
        """How many steps the state says that each of these has had.

        Where torch counts none, what matters is whether there was a step at all, and the slots show
        that.
        """
        kept = [kept_of(self._state, param) for param in params]
        if self._counts is not None:
            found = list(map(find, kept, params, names))
            for name, param, tensor in zip(names, params, found, strict=True):
                self._tensors.put(name, param, "step", tensor)
            known = len(self._counts.steps)
            self._counts = self._counts.plus(found, names)
            return self._counts.steps[known:]
        keys = self._hyper.torch.slots.values()
        return [any(isinstance(k.get(key), torch.Tensor) for key in keys) for k in kept]

    def _look(self) -> None:
        """Get ready to see what a step is to look at."""
        kept, extras = self._tensors.found, self._extras
        fresh = list(kept.values())[len(self._memory_of_state) :]
        self._memory_of_state = np.concatenate([self._memory_of_state, bounds(fresh)])
        check_apart(list(kept), self._memory_of_state, self._memory)
        stretches = Stretches(np.concatenate([self._memory, self._memory_of_state]))
        self._kept: Kept | None = None  # until a step has written to the state what it lacks
        written = [*self._here, *kept.values()]
        self._same = watch.tensors(written)
        self._grads = Gradients(self.stepper, self._here, stretches, self._rule.name, self._grads)
        self._rows = RowRunners(self.stepper) if extras.lazy else None
        self._ready: tuple[Any, list[Runner]] = ((), [])
        self._touched: tuple[list[Runner], list[torch.Tensor]] = ([], [])

    # -- what may have been replaced since the last step -----------------------------------------

    def fits(self, groups: Groups, state: Any) -> bool:
        """Whether a step can be made with this binding as it is."""
        return (
            self.members.hold(groups)
            and self._kept is not None
            and self._kept.hold(state)
            and self._same()
            and _differentiable(groups) == self._differentiable
            and self._follow(groups)
        )

    def _follow(self, groups: Groups) -> bool:
        """Follow edits of the numbers in the groups; False if they select other code."""
        self._settings = groups
        raw = self._hyper.raw(groups)
        if raw == self._seen:
            return True
        new = self._hyper.groups(groups)
        live = self.stepper.groups
        if list(map(self._hyper.code, live)) != list(map(self._hyper.code, new)):
            return False
        for old, now in zip(live, new, strict=True):
            old.values, old.maximize, old.decay = now.values, now.maximize, now.decay
        self._seen = raw
        return True

    # -- steps -----------------------------------------------------------------------------------

    def gather(self) -> None:
        """Look at counts and gradients, and get ready what steps them; writes nothing.

        Raises:
            NotOurs: a gradient is a tensor that kernels do not know.
            GradientError, StateError, RuntimeError: a gradient or a count is refused.
        """
        if self._counts is not None and self._counts.read():
            self.stepper.steps[:] = self._counts.steps
        grads: list[Any] = list(map(_grad, self._here))
        rows = [] if self._rows is None else self._rows.split(grads)
        self._ready = self._grads.collect(grads, self._weight_decay), rows
        self.stepper.prepare(self._ready[0])

    def step(self, loss_scale: float) -> Report | None:
        """One step with what was gathered; gradients are divided by `loss_scale`."""
        self._masters.refresh()
        dtypes, rows = self._ready
        empty = () if self._rows is None else self._rows.empty
        report = self.stepper.step(dtypes, self._bind, loss_scale, rows, empty, self._settle)
        if self._kept is None and not self._tensors.fresh:
            params = dict(zip(self._names, self._here, strict=True))
            entries = [(params[name], key, t) for (name, key), t in self._tensors.found.items()]
            self._kept = Kept(self._state, entries)
        return report

    def release(self) -> None:
        """Hold no gradient any more."""
        self._ready = ((), [])
        self._grads.release()
        if self._rows is not None:
            self._rows.release()

    def _weight_decay(self, index: int) -> Any:
        return self._settings[self.members.group_of[self._places[index]]].get("weight_decay")

    def _settle(self) -> None:
        """Bring what torch's users see up to date with the step; done twice, it does no harm."""
        self._tensors.commit()
        if self._counts is not None:
            self._counts.write(self.stepper.steps)
        if self.engine == "native":
            # Kernels write past autograd's eyes; a graph that needs the old values must fail.
            runners = self.stepper.last
            if runners != self._touched[0]:
                members = {int(m) for r in runners for m in r.cohort.members}
                self._touched = (runners, [self._here[k] for k in sorted(members)])
            increment_version(self._touched[1])
        self._masters.stepped()

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


_grad: Callable[[torch.Tensor], torch.Tensor | None] = operator.attrgetter("grad")


def choose_engine(params: list[torch.Tensor], differentiable: bool) -> Engine:
    """Kernels where all parameters are on the CPU and autograd need not look on."""
    on_cpu = all(p.device.type == "cpu" for p in params)
    return "native" if on_cpu and not differentiable else "array"


def _differentiable(groups: Groups) -> bool:
    return any(group.get("differentiable") for group in groups)
