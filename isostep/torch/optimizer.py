"""The step that replaces torch's: one fused pass over all parameters of an optimizer.

`FusedStep` goes before a class of torch.optim. Constructor, defaults, errors, groups and hooks stay
torch's own; state is kept under torch's names; only the arithmetic is isostep's.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from isostep import dialects, rules
from isostep.errors import HyperparameterError
from isostep.groups import Group
from isostep.plan import Plan
from isostep.report import Report
from isostep.torch.binding import Binding
from isostep.torch.options import Extras, LrRatio, checked, split

EXTRA_ARGUMENTS = (
    "clip",
    "ema",
    "groups",
    "dialect",
    "decay",
    "master_weights",
    "state_dtype",
    "nonfinite",
    "lazy",
    "report",
    "exclude_from_weight_decay",
    "lr_ratio",
)


class FusedStep(torch.optim.Optimizer):
    """The fused step, for a class of torch.optim that follows it in the bases."""

    rule: ClassVar[str]
    keeps_step: ClassVar[bool]
    _step_supports_amp_scaling = True

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
        params = split(params, groups, exclude_from_weight_decay, lr_ratio)
        super().__init__(params, *args, **kwargs)
        self._check_wishes()

    def _begin(self) -> None:
        """What is not saved: it is made anew from groups and state when a step needs it."""
        self._binding: Binding | None = None
        self._iteration = 0
        self._skipped = 0
        self._report: Report | None = None

    def _check_wishes(self) -> None:
        for group in self.param_groups:
            if group.get("capturable"):
                raise HyperparameterError(
                    "capturable=True: isostep has no kernel for CUDA graphs; leave it False, or "
                    "use torch.optim for this model"
                )
            if group.get("differentiable") and self._extras.clip is not None:
                raise HyperparameterError(
                    "differentiable=True does not go with clip=: clip the loss's gradients before "
                    "the step instead"
                )

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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        differentiable = bool(self.param_groups[0].get("differentiable"))
        with torch.set_grad_enabled(differentiable):
            self._fused_step()
        return loss

    def _fused_step(self) -> None:
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found is not None and float(found) != 0.0:
            self._skipped += 1
            return
        binding = self._bound()
        try:
            self._report = binding.step(1.0 if scale is None else float(scale))
        finally:
            self._iteration = binding.stepper.iteration
            self._skipped += binding.stepper.skipped
            binding.stepper.skipped = 0

    def _bound(self) -> Binding:
        if self._binding is None or self._binding.moved():
            self._binding = Binding(self, self._extras, self._iteration)
        return self._binding

    # -- torch's own entry points that change what a step stands on ------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._binding = None

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state of torch.optim or of isostep; dtypes are those that were saved."""
        super().load_state_dict(state_dict)
        self._restore_dtypes(state_dict)
        own = state_dict.get("isostep", {})
        self._iteration = int(own.get("iteration", 0))
        self._skipped = int(own.get("skipped", 0))
        self._binding = None

    def _restore_dtypes(self, state_dict: Any) -> None:
        # torch casts slots to the parameter's dtype, which would round float32 slots to bfloat16
        live = [p for group in self.param_groups for p in group["params"]]
        saved = [k for group in state_dict["param_groups"] for k in group["params"]]
        for param, key in zip(live, saved, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                now = self.state[param].get(name)
                if isinstance(value, torch.Tensor) and value.dtype != now.dtype:
                    self.state[param][name] = value.detach().clone().to(now.device)

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's state; with a moving average also isostep's own step count."""
        state = super().state_dict()
        if self._extras.ema is not None:
            state["isostep"] = {"iteration": self._iteration, "skipped": self._skipped}
        return state

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
        return [] if self._binding is None else self._binding.ran

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each parameter; nothing runs."""
        return Binding(self, self._extras, self._iteration, dry=True).plan()

    def source(self) -> str:
        """The generated source of the kernels of the last step."""
        return "" if self._binding is None else self._binding.source


def drop_in(torch_class: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A class with the name and signature of `torch_class` and isostep's step."""
    name = torch_class.__name__
    spelling = dialects.get("torch").spelling(name)
    rule = rules.get(spelling.rule)
    own = {
        "rule": rule.name,
        "keeps_step": name != "SGD",  # torch's SGD counts nothing
        "__module__": "isostep.torch",
    }
    made = type(name, (FusedStep, torch_class), own)
    made.__doc__ = _documentation(name, rule)
    signature = inspect.signature(torch_class)
    extra = [
        inspect.Parameter(a, inspect.Parameter.KEYWORD_ONLY, default=_default(a))
        for a in EXTRA_ARGUMENTS
    ]
    made.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[*signature.parameters.values(), *extra]
    )
    return made


def _default(argument: str) -> Any:
    field = Extras.__dataclass_fields__.get(argument)
    return field.default if field is not None else (None if argument == "lr_ratio" else ())


def _documentation(name: str, rule: rules.Rule) -> str:
    return f"""torch.optim.{name} in one fused step: the same arguments, groups, state and numbers.

    Args:
        params, and all arguments of torch.optim.{name}: as there.
        clip: `isostep.Clip(global_norm=...)`, `Clip(norm=...)` or `Clip(value=...)`.
        ema: `isostep.EMA` or its momentum; see `averaged_params`.
        groups: `isostep.Group(pattern, **hyperparameters)` over names; needs named parameters.
        dialect: whose formulas; names and defaults stay torch's.
        decay: `"coupled"` or `"decoupled"`; None is torch's way.
        master_weights: float32 masters of float16 and bfloat16 parameters.
        state_dtype: dtype of the slots; None is the parameter's.
        nonfinite: `"propagate"`, `"skip"` or `"raise"`.
        lazy: sparse gradients touch only the rows that they have.
        report: measure norms in each step; see `report`.
        exclude_from_weight_decay: name patterns of parameters that do not decay.
        lr_ratio: factor on the learning rate, by name pattern or as a function of the name.

    Slots: {", ".join(s.name for s in rule.slots)}.
    """
