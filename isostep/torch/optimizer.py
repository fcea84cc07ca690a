"""The step that replaces torch's: one fused pass over all parameters of an optimizer.

`FusedStep` goes before a class of torch.optim. Constructor, defaults, errors, groups and hooks stay
torch's own; state is kept under torch's names; only the arithmetic is isostep's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch._compile import _disable_dynamo

from isostep import extension, rules
from isostep.errors import HyperparameterError
from isostep.groups import Group, as_groups
from isostep.plan import Plan
from isostep.report import Report
from isostep.torch import own_step
from isostep.torch.binding import Binding
from isostep.torch.hyper import Hyperparameters
from isostep.torch.options import Extras, LrRatio, checked, split
from isostep.torch.slots import WatchedState, recast

ITERATION, SKIPPED = "isostep_iteration", "isostep_skipped"


class FusedStep(torch.optim.Optimizer):
    """The fused step, for a class of torch.optim that follows it in the bases."""

    rule: ClassVar[str]
    arguments: ClassVar[frozenset[str]]
    keeps_step: ClassVar[bool]

    @_disable_dynamo  # traced, it would lose what it sets before torch's constructor
    def __init__(
        self,
        params: Any,
        *args: Any,
        groups: Sequence[Group | Mapping[str, Any]] = (),
        exclude_from_weight_decay: Sequence[str] = (),
        lr_ratio: LrRatio | None = None,
        **kwargs: Any,
    ) -> None:
        extras = {k: kwargs.pop(k) for k in list(kwargs) if k in Extras.__dataclass_fields__}
        self._extras = checked(extras)
        self._begin()
        params = split(params, groups, exclude_from_weight_decay, lr_ratio, self.arguments)
        for group in as_groups(groups):  # torch itself looks at the first values only
            lr = group.hyperparameters.get("lr", 0.0)
            if not isinstance(lr, torch.Tensor):
                rules.get(self.rule).hyperparameter("lr").check(lr, f"lr of {group.patterns}")
        super().__init__(params, *args, **kwargs)
        hyper = Hyperparameters(rules.get(self.rule), self._extras)
        first = hyper.values(self.param_groups[0])
        dtypes = self._extras.slot_dtypes(hyper.torch.slots)
        if self.state and (self._extras.state_dtype or self._extras.master_weights):
            recast(self.state, rules.get(self.rule), hyper.torch.slots, dtypes, first)

    def _begin(self) -> None:
        """What is not saved: it is made anew from groups and state when a step needs it."""
        self._binding: Binding | None = None
        self._iteration = 0
        self._skipped = 0
        self._report: Report | None = None
        self._own_scales = False
        self._ran_own = False

    def _check_wishes(self) -> None:
        cause = own_step.cause(self, new=True)
        if cause is not None:
            self._refuse_extras(cause)
        for group in self.param_groups:
            if group.get("differentiable") and self._extras.clip is not None:
                raise HyperparameterError(
                    "differentiable=True does not go with clip=: clip the loss's gradients before "
                    "the step instead"
                )

    def _refuse_extras(self, cause: own_step.Cause) -> None:
        used = self._extras.used()
        if any(group.get("lr_ratio", 1.0) != 1.0 for group in self.param_groups):
            used.append("lr_ratio")
        extension.refuse(used, *cause)

    # -- stepping --------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient.

        Args:
            closure: computes the loss again and returns it, as in torch.optim.

        Returns:
            What the closure returned, or None. What the step measured is in `report`.

        Raises:
            GradientError: under `nonfinite="raise"`, a gradient is infinite or NaN.
            RuntimeError: a sparse gradient that the rule does not take.
        """
        look = _outside_graphs if torch.compiler.is_compiling() else FusedStep._cause
        cause = look(self)
        if cause is not None:
            return self._own_step(cause, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        differentiable = any(group.get("differentiable") for group in self.param_groups)
        with torch.set_grad_enabled(differentiable):
            self._fused_step()
        return loss

    def _cause(self) -> own_step.Cause | None:
        bound = self._binding
        return own_step.cause(self, new=bound is None or bound.outgrown(self.param_groups))

    def _own_step(self, cause: own_step.Cause, closure: Callable[[], Any] | None) -> Any:
        self._refuse_extras(cause)  # a group may have been edited
        self._binding, self._report = None, None
        self._ran_own = True
        return own_step.unhooked(super().step.__func__)(self, closure)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves it to the step to unscale."""
        return self._cause() is None or self._own_scales

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, does: bool) -> None:
        self._own_scales = does  # torch's constructor says so of its fused=True

    @_disable_dynamo  # a compiled training step breaks its graph here, once
    def _fused_step(self) -> None:
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found is not None and float(found) != 0.0:
            self._skipped += 1
            return
        if self._idle():
            return
        binding = self._bound()
        self._ran_own = False
        try:
            self._report = binding.step(1.0 if scale is None else float(scale))
        finally:
            self._iteration = binding.stepper.iteration
            self._skipped += binding.stepper.skipped
            binding.stepper.skipped = 0

    def _idle(self) -> bool:
        """Whether there is nothing to do: no gradient at all. Then torch looks at no setting."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    return False
        return not self._extras.used()

    def _bound(self) -> Binding:
        if self._binding is None or self._binding.stale(self.param_groups, self.state):
            self._binding = self._bind()
        return self._binding

    def _bind(self, dry: bool = False) -> Binding:
        return Binding(
            rules.get(self.rule),
            self._extras,
            self.param_groups,
            self.state,
            self.keeps_step,
            self._iteration,
            dry,
        )

    # -- torch's own entry points that change what a step stands on ------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._binding = None
        try:
            self._check_wishes()
        except HyperparameterError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state of torch.optim or of isostep; dtypes are those that were saved."""
        final: list[Any] = []  # what is loaded once the user's hooks have been at it
        base = torch.optim.Optimizer  # a subclass that overrides these expects the user's hooks
        handles = [
            base.register_load_state_dict_pre_hook(self, lambda _, saved: final.append(saved)),
            base.register_load_state_dict_post_hook(
                self,
                lambda _: self._loaded(final[0]["state"], final[0]["param_groups"]),
                prepend=True,
            ),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _loaded(self, state: Any, groups: list[dict[str, Any]]) -> None:
        """Make good what torch's loading does not know of."""
        live = [p for group in self.param_groups for p in group["params"]]
        keys = [k for group in groups for k in group["params"]]
        for param, key in zip(live, keys, strict=True):
            for name, value in state.get(key, {}).items():
                now = self.state[param].get(name)
                # torch casts to the parameter's dtype, which rounds float32 slots to bfloat16
                if isinstance(value, torch.Tensor) and value.dtype != now.dtype:
                    self.state[param][name] = value.detach().clone().to(now.device)
        counts = [g.pop(name, None) for name in (ITERATION, SKIPPED) for g in self.param_groups]
        iteration, skipped = counts[0], counts[len(self.param_groups)]
        self._iteration = self._steps_so_far() if iteration is None else int(iteration)
        self._skipped = int(skipped or 0)
        self._binding = None

    def _steps_so_far(self) -> int:
        """The optimizer's own step count, in a state that keeps only those of the parameters."""
        if self._extras.style.steps_per == "parameter":
            return 0  # where a moving average starts
        return max((int(kept.get("step", 0)) for kept in self.state.values()), default=0)

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's state; also the optimizer's own step count where something needs it."""
        if self._extras.ema is None and self._extras.style.steps_per == "parameter":
            return _plain(super().state_dict())
        # Among the hyperparameters of each group: the place that every saver of states keeps.
        for group in self.param_groups:
            group |= {ITERATION: self._iteration, SKIPPED: self._skipped}
        try:
            return _plain(super().state_dict())
        finally:
            for group in self.param_groups:
                del group[ITERATION], group[SKIPPED]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "_extras": self._extras,
            "_saved_counts": (self._iteration, self._skipped),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        counts = self.__dict__.pop("_saved_counts", None)
        if counts is not None:  # unpickled, not loaded: there was no constructor
            self._begin()
            self._iteration, self._skipped = counts
        self._binding = None

    # -- what torch.optim does not have ----------------------------------------------------------

    @contextlib.contextmanager
    def averaged_params(self) -> Generator[None]:
        """The parameters hold their moving averages inside this context, and are put back after it,
        also when it is left by an exception.

        Raises:
            HyperparameterError: the optimizer was made without `ema`.
        """
        if self._extras.ema is None:
            raise HyperparameterError("there are no averages: make the optimizer with ema=...")
        averaged = [p for p in self.state if "average" in self.state[p]]
        kept = [p.detach().clone() for p in averaged]
        try:
            with torch.no_grad():
                for p in averaged:
                    p.copy_(self.state[p]["average"])
            yield
        finally:
            with torch.no_grad():
                for p, before in zip(averaged, kept, strict=True):
                    p.copy_(before)

    @property
    def report(self) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`."""
        return self._report

    @property
    def skipped(self) -> int:
        """How many steps were skipped for a non-finite gradient."""
        return self._skipped

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel: engine, layout and dtype."""
        if self._ran_own:
            return ["torch.optim"]
        return [] if self._binding is None else self._binding.stepper.ran

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each parameter; nothing runs."""
        planned = self._bind(dry=True).plan()
        return planned if self._cause() is None else planned.left_to("torch.optim's own step")

    def source(self) -> str:
        """The generated source of the kernels of the last step."""
        return "" if self._binding is None else self._binding.stepper.source


@_disable_dynamo
def _outside_graphs(optimizer: FusedStep) -> own_step.Cause | None:
    return optimizer._cause()


def _plain(saved: dict[str, Any]) -> dict[str, Any]:
    """The state with its dicts as torch has them; hooks may have left anything else."""
    state = saved.get("state")
    if isinstance(state, dict):
        for key, kept in state.items():
            if isinstance(kept, WatchedState):
                state[key] = dict(kept)
    return saved
