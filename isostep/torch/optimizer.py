"""The step that replaces torch's: one fused pass over all parameters of an optimizer.

`FusedStep` goes before a class of torch.optim. Constructor, defaults, errors, groups and hooks stay
torch's own; state is kept under torch's names; only the arithmetic is isostep's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch._compile import _disable_dynamo

from isostep import dialects, extension, parts, rules
from isostep.errors import HyperparameterError
from isostep.groups import Group, as_groups
from isostep.lock import Lock
from isostep.plan import Plan
from isostep.rates import LR_RATIO
from isostep.report import Report
from isostep.torch import own_step
from isostep.torch.binding import Binding
from isostep.torch.counts import ITERATION, SKIPPED, check_counts, steps_in
from isostep.torch.hyper import Hyperparameters, check_rate
from isostep.torch.members import own_lists
from isostep.torch.options import Extras, LrRatio, Patterns, checked, exclusions
from isostep.torch.own_step import NotOurs
from isostep.torch.ranks import ProcessRanks, ranks_of
from isostep.torch.slots import Wanted, recast


class FusedStep(torch.optim.Optimizer):
    """The fused step, for a class of torch.optim that follows it in the bases."""

    rule: ClassVar[str]
    arguments: ClassVar[frozenset[str]]
    keeps_step: ClassVar[bool]

    # The processes that step the other parts of the model, and why there are other parts. A copy
    # has the reason only.
    _ranks: ProcessRanks | None = None
    _part: str = ""

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
        self._lock = Lock()
        self._begin()
        self._patterns = Patterns()  # those that are given have their effect here
        patterns = Patterns(as_groups(groups), exclusions(exclude_from_weight_decay), lr_ratio)
        params = patterns.split(params, self.arguments)
        for group in as_groups(groups):  # torch itself looks at the first values only
            lr = group.hyperparameters.get("lr", 0.0)
            if not isinstance(lr, torch.Tensor):
                rules.get(self.rule).hyperparameter("lr").check(lr, f"lr of {group.patterns}")
        super().__init__(params, *args, **kwargs)
        self._find_part()
        self._refuse_parts()
        self._patterns = patterns
        hyper = Hyperparameters(rules.get(self.rule), self._extras)
        first = hyper.values(self.param_groups[0])
        dtypes = self._extras.slot_dtypes(hyper.torch.slots)
        if self.state and (self._extras.state_dtype or self._extras.master_weights):
            recast(self.state, rules.get(self.rule), hyper.torch.slots, dtypes, first)

    def _begin(self, iteration: int = 0, skipped: int = 0) -> None:
        """What is not saved: it is made anew from groups and state when a step needs it."""
        self._binding: Binding | None = None
        # The steps of the optimizer so far: the last binding's stepper, or what came before it.
        self._counted: Any = SimpleNamespace(iteration=iteration, skipped=skipped)
        self._report: Report | None = None
        self._own_scales = False
        self._ran_own = False

    def _check_wishes(self) -> None:
        cause = own_step.cause(self) or own_step.repeated(self.param_groups)
        if cause is not None:
            self._refuse_extras(cause)
        if self.defaults.get("differentiable") and self._extras.clip is not None:
            raise HyperparameterError(
                "differentiable=True does not go with clip=: clip the loss's gradients before the "
                "step instead"
            )
        for group in self.param_groups:
            check_rate(group)

    def _find_part(self) -> None:
        """Look who makes this optimizer, and which processes have the other parts of its model."""
        spanning = self._extras.spanning(shards=False)
        holder = self._holder() if spanning else None
        self._part = parts.held_by(holder)
        if "report" not in spanning:
            self._ranks = ranks_of(holder, count=len(spanning))

    def _params(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _holder(self) -> Any:
        return parts.holder_of(self, self._params(), dialects.get("torch").part_holders)

    def _refuse_parts(self) -> None:
        """Refuse options that span parameters, if only a part of a model's are here."""
        sharded = self._extras.spanning(shards=True)
        if not sharded:
            return
        parts.refuse(sharded, parts.mark_of(self._params(), dialects.get("torch").shard_marks))
        spanning = self._extras.spanning(shards=False)
        if spanning and self._ranks is None:
            parts.refuse(spanning, self._part or parts.held_by(self._holder()))

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
            PartError: in ZeroRedundancyOptimizer, another process takes no part in the step.
            RuntimeError: a sparse gradient that the rule does not take.
        """
        if self._ranks is not None:
            return _together(self, self._ranks, closure)
        return self._fused_or_own(closure)

    def _fused_or_own(self, closure: Callable[[], Any] | None) -> Any:
        look = _outside_graphs if torch.compiler.is_compiling() else FusedStep._cause
        cause = look(self)
        if cause is not None:
            return self._own_step(cause, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # As torch has it: autograd follows by the defaults, whatever the groups say.
        with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
            cause = self._fused_step()
        if cause is not None:
            self._own_step(cause, None)
        return loss

    def _cause(self) -> own_step.Cause | None:
        if own_step.is_watched():
            return own_step.WATCHED
        own_lists(self.param_groups)
        return own_step.cause(self)

    def _own_step(self, cause: own_step.Cause, closure: Callable[[], Any] | None) -> Any:
        with self._lock:
            self._refuse_extras(cause)  # a group may have been edited
            self._binding, self._report = None, None
            self._ran_own = True
            return own_step.unhooked(super().step.__func__)(self, closure)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves it to the step to unscale."""
        return self._own_scales or (self._cause() is None and self._is_fused())

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, does: bool) -> None:
        self._own_scales = does  # torch's constructor says so of its fused=True

    def _is_fused(self) -> bool:
        """Whether kernels can make the next step, as far as tensors decide it."""
        try:
            with self._lock, torch.no_grad():
                if not self._idle():
                    self._binding = self._prepared()
                    self._binding.release()
        except NotOurs:
            return False
        return True

    @_disable_dynamo  # a compiled training step breaks its graph here, once
    def _fused_step(self) -> own_step.Cause | None:
        """A step by kernels; why it is torch's own, where it is."""
        with self._lock:
            scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
            if found is not None and float(found) != 0.0:
                self._counted.skipped += 1
                return None
            if self._idle():
                return None
            try:
                binding = self._prepared()
            except NotOurs as error:
                return error.cause
            # An exception up to here leaves no binding, and groups and state as they were.
            self._binding, self._counted, self._ran_own = binding, binding.stepper, False
            try:
                self._report = binding.step(1.0 if scale is None else float(scale))
            finally:
                binding.release()
            return None

    def _idle(self) -> bool:
        """Whether there is nothing to do: no gradient at all. Then torch looks at no setting."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    return False
        return not self._extras.used()

    def _prepared(self) -> Binding:
        """A binding with the gradients of the next step, which stands on what is there now.

        Raises:
            NotOurs: the step is torch.optim's own.
        """
        binding, self._binding = self._binding, None
        try:
            if binding is None or not binding.fits(self.param_groups, self.state):
                binding = self._bind(wide=True)
            else:
                binding.grow()
            if not binding.presumes:
                binding.gather()
                return binding
        except (NotOurs, ValueError, RuntimeError):
            pass  # it may be about a parameter without gradient, which is none of the step's
        binding = self._bind()
        binding.gather()
        return binding

    def _bind(self, dry: bool = False, wide: bool = False) -> Binding:
        self._refuse_parts()
        with torch.inference_mode(False):  # tensors of the state outlive it
            binding = Binding(
                rules.get(self.rule),
                self._extras,
                self.param_groups,
                self.state,
                self.keeps_step,
                self._counted,
                dry,
                wide,
            )
        binding.stepper.ranks = self._ranks
        return binding

    # -- torch's own entry points that change what a step stands on ------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, or several where the patterns that the optimizer was made with say so of
        its names: `exclude_from_weight_decay`, `lr_ratio` and `groups`, which the group's own
        hyperparameters come before.

        Raises:
            HyperparameterError: isostep's options do not go with such a group; nothing is added.
        """
        with self._lock:
            before = len(self.param_groups)
            try:
                for group in self._patterns.applied(param_group):
                    super().add_param_group(group)
                self._check_wishes()
            except BaseException:
                del self.param_groups[before:]
                raise
            self._binding = None

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state of torch.optim or of isostep.

        Slots have the dtypes that were saved, but for those of which `state_dtype` or
        `master_weights` say otherwise. Groups have the hyperparameters that were saved; exclusions
        from weight decay stay, and `lr_ratio` where none was saved. A state that is refused
        changes nothing.

        Raises:
            StateError: a step count is no whole number in [0, 2^63 - 2].
            ValueError: other groups or numbers of parameters, as in torch.
        """
        with self._lock:
            before = self.state, self.param_groups
            try:
                self._load(state_dict)
            except BaseException:
                self.state, self.param_groups = before
                raise

    def _load(self, state_dict: Any) -> None:
        final: list[Any] = []  # what is loaded once the user's hooks have been at it
        groups = self.param_groups

        def check(_: Any, saved: Any) -> None:
            check_counts(saved, self.keeps_step)
            final.append(saved)

        base = torch.optim.Optimizer  # a subclass that overrides these expects the user's hooks
        handles = [
            base.register_load_state_dict_pre_hook(self, check),
            base.register_load_state_dict_post_hook(
                self, lambda _: self._loaded(final[0], groups), prepend=True
            ),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _loaded(self, saved: Any, before: list[dict[str, Any]]) -> None:
        """Make good what torch's loading does not know of."""
        for group, old in zip(self.param_groups, before, strict=True):
            if LR_RATIO.name in old:  # it was asked for here, of these parameters
                group.setdefault(LR_RATIO.name, old[LR_RATIO.name])
            self._patterns.exclude(group)
        live = [p for group in self.param_groups for p in group["params"]]
        keys = [k for group in saved["param_groups"] for k in group["params"]]
        hyper = Hyperparameters(rules.get(self.rule), self._extras)
        wanted = Wanted(rules.get(self.rule), hyper.torch.slots, self._extras)
        for param, key in zip(live, keys, strict=True):
            wanted.restore(param, self.state.get(param), saved["state"].get(key))
        found = [{k: g.pop(k, None) for k in (ITERATION, SKIPPED)} for g in self.param_groups]
        iteration, skipped = found[0].values() if found else (None, None)
        self._begin(self._steps_so_far() if iteration is None else iteration, skipped or 0)

    def _steps_so_far(self) -> int:
        """The optimizer's own step count, in a state that keeps only those of the parameters."""
        if self._extras.style.steps_per == "parameter":
            return 0  # where a moving average starts
        return max((steps_in(kept) for kept in self.state.values()), default=0)

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's state; also the optimizer's own step count where something needs it."""
        with self._lock:
            if self._extras.ema is None and self._extras.style.steps_per == "parameter":
                return super().state_dict()
            base = torch.optim.Optimizer
            handle = base.register_state_dict_post_hook(
                self, lambda _, saved: self._add_counts(saved), prepend=True
            )
            try:
                return super().state_dict()
            finally:
                handle.remove()

    def _add_counts(self, saved: dict[str, Any]) -> None:
        # Among the hyperparameters of each group: the place that every saver of states keeps.
        counts = {ITERATION: self._counted.iteration, SKIPPED: self._counted.skipped}
        for group in saved["param_groups"]:
            group |= counts

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return super().__getstate__() | {
                "_extras": self._extras,
                "_patterns": self._patterns,
                "_part": self._part,
                "_saved_counts": (self._counted.iteration, self._counted.skipped),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        counts = self.__dict__.pop("_saved_counts", None)
        if counts is not None:  # unpickled, not loaded: there was no constructor
            self._lock = Lock()
            self._begin(*counts)
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
        return self._counted.skipped

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel: engine, layout and dtype."""
        if self._ran_own:
            return ["torch.optim"]
        return [] if self._binding is None else self._binding.stepper.ran

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each parameter; nothing runs."""
        with self._lock:
            binding = self._bind(dry=True)
            planned = binding.plan()
            own = binding.odd or self._cause() is not None
            return planned.left_to("torch.optim's own step") if own else planned

    def source(self) -> str:
        """The generated source of the kernels of the last step."""
        return "" if self._binding is None else self._binding.stepper.source


@_disable_dynamo
def _together(optimizer: FusedStep, ranks: ProcessRanks, closure: Any) -> Any:
    with ranks.step():
        return optimizer._fused_or_own(closure)


@_disable_dynamo
def _outside_graphs(optimizer: FusedStep) -> own_step.Cause | None:
    return optimizer._cause()
