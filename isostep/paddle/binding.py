"""An optimizer's parameters, accumulators and settings, bound to a stepper over their memory.

What may change at any step (settings, which parameters have gradients, where these lie) is looked
at in every step; a binding is made anew where memory has moved or a state was loaded.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from isostep import dialects
from isostep.engines import threads
from isostep.engines.cohort import Runner
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError, ParameterError
from isostep.paddle import accumulators
from isostep.paddle.accumulators import Slots
from isostep.paddle.hyper import Factor, Hyperparameters, rate_of
from isostep.paddle.powers import Powers
from isostep.paddle.tensors import addresses, check_steppable, dtype_name, numpy_view, view_at
from isostep.report import Report
from isostep.rows import obstacle, row_runner
from isostep.rules import Rule
from isostep.stepper import DTYPES, Stepper

_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")
_is_dense, _is_contiguous = paddle.Tensor.is_dense, paddle.Tensor.is_contiguous
_NAMES = {getattr(paddle, name): name for name in DTYPES}


# Beside Paddle's own threads, which spin on after a backward pass, others would have to wait.
threads.share(Path(paddle.__file__).parent / "libs" / "libiomp5.so")


class Binding:
    """A stepper over the parameters of one optimizer, by kernels.

    Args:
        optimizer: the optimizer.
        rule: its rule.
        counts: the steps that parameters have had, by name.
    """

    def __init__(self, optimizer: Any, rule: Rule, counts: dict[str, int]) -> None:
        self._optimizer, self._counts = optimizer, counts
        self._hyper = Hyperparameters(optimizer, rule, optimizer.spelling)
        self._params: list[Any] = []
        self._owners: list[int] = []
        self._places: dict[int, int] = {}
        self._raw: list[Any] = []
        self._factors: list[Factor] = []
        self._apart = False
        self._by_name: dict[str, Any] = {}
        self._slots = Slots(optimizer, self._by_name, optimizer.spelling.slots)
        self.stepper = Stepper(
            rule,
            dialects.get("paddle"),
            optimizer.spelling,
            [],
            optimizer.options(),
            "native",
            self._slots,
        )
        self._powers = Powers(optimizer, [], [])
        self._grads = np.zeros(0, dtype=np.int64)
        self._held: list[Any] = []
        self._watch()

    # -- memory ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Remember where everything lies, and what it is."""
        optimizer = self._optimizer
        self._tensors = [*self._params, *self._slots.tensors]
        self._where = addresses(self._tensors)
        self._shapes = list(map(_shape, self._params))
        self._kinds = list(map(_dtype, self._params))
        self._filled = np.array([leaf.array.size > 0 for leaf in self.stepper.leaves], dtype=bool)
        kept = [*optimizer._accumulators.values(), optimizer._master_weights]
        self._kept = [(held, list(held.values())) for held in kept]
        # Of the last step in which all had a dense gradient.
        self._grad_kinds: list[Any] = []
        self._grad_dtypes: tuple[str | None, ...] | None = None

    def stale(self) -> bool:
        """Whether a parameter or an accumulator lies elsewhere than before or is another tensor, or
        a parameter has another dtype in what may be the same place."""
        return (
            not np.array_equal(addresses(self._tensors), self._where)
            or list(map(_dtype, self._params)) != self._kinds
            or not all(
                len(now) == len(before) and all(map(operator.is_, now.values(), before))
                for now, before in self._kept
            )
        )

    # -- steps -----------------------------------------------------------------------------------

    def step(self, pairs: Sequence[tuple[Any, Any]], owners: Sequence[int]) -> Report | None:
        """One step.

        Args:
            pairs: parameters, each with its gradient.
            owners: the parameter group of each.

        Raises:
            GradientError: a gradient has another shape than its parameter, or an unknown dtype.
            ParameterError: a parameter cannot be stepped.
        """
        _check_gradients(pairs)
        self._check_shapes(pairs)
        self._take(pairs, owners)
        self._refresh()
        try:
            rows, dtypes = self._collect(pairs)
            if self.stale():
                raise ParameterError("a parameter was moved in memory by a function of the step")
            return self._run([p for p, _ in pairs], dtypes, rows)
        finally:
            self._held = []

    def usual_step(self, params: Sequence[Any], grads: list[Any]) -> tuple[bool, Report | None]:
        """One step if it is like those before: every parameter that is known has a gradient which
        lies as it does. That is looked at in few calls for all of them.

        Args:
            params: the parameters.
            grads: their gradients.

        Returns:
            Whether it was so, and else nothing was done; and the report.
        """
        if self._grad_dtypes is None or not self._usual(params, grads):
            return False, None
        self._refresh()
        if self._apart or self.stale():
            return False, None
        self._grads = addresses(grads)
        return True, self._run(params, self._grad_dtypes, {})

    def _usual(self, params: Sequence[Any], grads: list[Any]) -> bool:
        return (
            len(params) == len(self._params)
            and all(map(operator.is_, params, self._params))
            and all(map(_is_dense, grads))
            and all(map(_is_contiguous, grads))
            and list(map(_shape, grads)) == self._shapes
            and list(map(_dtype, grads)) == self._grad_kinds
        )

    def _run(
        self,
        params: Sequence[Any],
        dtypes: tuple[str | None, ...],
        rows: dict[int, Runner | None],
    ) -> Report | None:
        missing = (self._grads == 0) & self._filled & [dtype is not None for dtype in dtypes]
        if missing.any():
            name = self.stepper.leaves[int(missing.argmax())].name
            raise GradientError(f"the gradient of {name!r} has no memory; nothing was changed")
        made = self.stepper
        self._powers.follow(made.steps)
        before = made.iteration
        stepped = [runner for runner in rows.values() if runner]
        try:
            return made.step(dtypes, self._bind, self._optimizer.loss_scale, stepped)
        finally:
            if made.iteration != before:
                empty = [k for k, runner in rows.items() if runner is None]
                made.steps[empty] += 1  # a gradient without rows is a step all the same
                self._powers.write(made.steps)
                for param in params:  # kernels write past autograd's eyes
                    param._bump_inplace_version()

    def _bind(self, runner: Runner) -> None:
        assert isinstance(runner, NativeRunner)
        runner.refresh("grad", self._grads[runner.cohort.members])

    # -- parameters and settings -----------------------------------------------------------------

    def _take(self, pairs: Sequence[tuple[Any, Any]], owners: Sequence[int]) -> None:
        """Take in the parameters that have a gradient for the first time."""
        fresh = [k for k, (p, _) in enumerate(pairs) if id(p) not in self._places]
        if not fresh:
            return
        params, belongs = [pairs[k][0] for k in fresh], [owners[k] for k in fresh]
        for param in params:
            check_steppable(param)
        self._check_names(params)
        raw = self._hyper.raw([*self._params, *params], [*self._owners, *belongs])
        groups, membership, self._factors = self._hyper.groups(raw)
        known = set(self._optimizer._already_create_accumulator)
        self._slots.fresh = {p.name for p in params} - known
        accumulators.create(self._optimizer, params, belongs)
        self._params += params
        self._owners += belongs
        self._raw, self._apart = raw, self._hyper.foreign(raw)
        made = self.stepper
        before = len(made.leaves)
        made.regroup(groups, membership[:before])
        for param, group in zip(params, membership[before:], strict=True):
            self._places[id(param)] = len(made.leaves)
            self._by_name[param.name] = param
            made.add(param.name, numpy_view(param), group, self._counts.get(param.name, 0))
        self._slots.fresh = set()
        self._powers = Powers(self._optimizer, self._params, self._values())
        self._watch()

    def _check_shapes(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Refuse parameters that have another shape than when they were taken in."""
        for param, _ in pairs:
            place = self._places.get(id(param))
            if place is not None and param.shape != self._shapes[place]:
                raise ParameterError(
                    f"parameter {param.name!r} had shape {self._shapes[place]} and now has "
                    f"{param.shape}: make a new optimizer for it"
                )

    def _check_names(self, params: Sequence[Any]) -> None:
        """Refuse two parameters of one name, which would share accumulators."""
        known = {param.name: param for param in self._params}
        for param in params:
            other = known.setdefault(param.name, param)
            if other is not param:
                raise ParameterError(
                    f"two parameters are called {param.name!r}, and Paddle keeps accumulators by "
                    f"name: build the layers under one paddle.utils.unique_name.guard(), or give "
                    f"them names by ParamAttr(name=...)"
                )

    def _values(self) -> list[dict[str, Any]]:
        """The hyperparameters of each parameter."""
        return [self.stepper.groups[leaf.group].values for leaf in self.stepper.leaves]

    def _refresh(self) -> None:
        """Follow what was set since the last step."""
        raw = self._hyper.raw(self._params, self._owners)
        if raw != self._raw:
            groups, membership, self._factors = self._hyper.groups(raw)
            self.stepper.regroup(groups, membership)
            self._raw, self._apart = raw, self._hyper.foreign(raw)
            self._powers.set_betas(self._values())
        rate = self._optimizer.rate()
        for group, factor in zip(self.stepper.groups, self._factors, strict=True):
            group.values["lr"] = rate_of(rate, factor)

    # -- gradients -------------------------------------------------------------------------------

    def _collect(
        self, pairs: Sequence[tuple[Any, Any]]
    ) -> tuple[dict[int, Runner | None], tuple[str | None, ...]]:
        """What steps the gradients of which only rows are there, and the dtypes of the others,
        whose addresses are kept."""
        rows: dict[int, Runner | None] = {}
        if self._apart:
            pairs = self._optimizer.prepared(pairs, self._hyper)
        grads: list[Any] = [None] * len(self._params)
        for param, grad in pairs:
            grads[self._places[id(param)]] = grad
        for k, grad in enumerate(grads):
            if grad is None or grad.is_dense():
                continue
            index, values = _merged(grad)
            _check_rows(self._params[k], index, values)
            if self._optimizer.lazy_in(self._owners[k]):
                rows[k], grads[k] = self._row_runner(k, index, values), None
            else:
                grads[k] = np.zeros(tuple(self._shapes[k]), values.dtype)
                grads[k][index] = values
        self._held.append(grads)
        self._grads, dtypes = self._looked_at(grads)
        if not rows and not any(isinstance(g, np.ndarray | None) for g in grads):
            self._grad_kinds, self._grad_dtypes = [g.dtype for g in grads], dtypes
        return rows, dtypes

    def _row_runner(self, k: int, index: Any, values: Any) -> Runner | None:
        why = obstacle(self.stepper, self.stepper.leaves[k])
        if why:
            raise GradientError(
                f"lazy_mode=True: the sparse gradient of {self._params[k].name!r} cannot be "
                f"stepped row by row: {why}"
            )
        self._held.append(values)
        return row_runner(self.stepper, k, index, values)

    def _looked_at(self, grads: list[Any]) -> tuple[Any, tuple[str | None, ...]]:
        """The address and the dtype of each gradient."""
        found = np.zeros(len(grads), dtype=np.int64)
        dtypes: list[str | None] = [None] * len(grads)
        for k, grad in enumerate(grads):
            if isinstance(grad, np.ndarray):
                found[k], dtypes[k] = grad.ctypes.data, grad.dtype.name
            elif grad is not None:
                if not grad.is_contiguous():
                    grads[k] = grad = grad.contiguous()
                found[k], dtypes[k] = grad.data_ptr() or 0, _NAMES[grad.dtype]
        return found, tuple(dtypes)

    # -- looking in ------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """The steps that each parameter has had, by name."""
        names = [leaf.name for leaf in self.stepper.leaves]
        return dict(zip(names, self.stepper.steps.tolist(), strict=True))


def _check_gradients(pairs: Sequence[tuple[Any, Any]]) -> None:
    for param, grad in pairs:
        if grad.dtype not in _NAMES:
            raise GradientError(
                f"the gradient of {param.name!r} is {grad.dtype}: that has no kernel; use one of "
                f"{', '.join(DTYPES)}"
            )
        if grad.is_dense() and (grad.shape != param.shape or not grad.place.is_cpu_place()):
            raise GradientError(
                f"the gradient of {param.name!r} has shape {grad.shape} on {grad.place}, and the "
                f"parameter {param.shape} on {param.place}; nothing was changed"
            )


def _check_rows(param: Any, index: Any, values: Any) -> None:
    """Refuse rows that the parameter does not have."""
    due = tuple(param.shape[1:])
    if values.shape[1:] != due or (len(index) and not 0 <= index[0] <= index[-1] < param.shape[0]):
        raise GradientError(
            f"the sparse gradient of {param.name!r} has rows {index[:1]} to {index[-1:]} of shape "
            f"{values.shape[1:]}, and the parameter has {param.shape[0]} rows of shape {due}; "
            f"nothing was changed"
        )


def _merged(grad: Any) -> tuple[Any, Any]:
    """The rows that a sparse gradient has, in order and each once, and their values; duplicates are
    summed.

    Paddle's own function for this leaves rows unsorted, and does not know bfloat16.
    """
    kept = grad.get_selected_rows()
    rows, tensor = np.array(kept.rows(), dtype=np.int64), kept.get_tensor()
    values = view_at(tensor._ptr() if len(rows) else 0, tensor.shape(), dtype_name(grad.dtype))
    rows, place = np.unique(rows, return_inverse=True)
    sums = np.zeros((len(rows), *values.shape[1:]), np.result_type(values.dtype, np.float32))
    np.add.at(sums, place, values.astype(sums.dtype))
    return rows, sums
