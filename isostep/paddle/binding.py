"""An optimizer's parameters, accumulators and settings, bound to a stepper over their memory.

What may change at any step (settings, which parameters have gradients, where these lie) is looked
at in every step; a binding is made anew where memory has moved or a state was loaded.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import paddle

from isostep import dialects
from isostep.engines.cohort import Runner
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError, ParameterError
from isostep.paddle import accumulators
from isostep.paddle.accumulators import Slots
from isostep.paddle.hyper import Hyperparameters
from isostep.paddle.tensors import addresses, check_steppable, dtype_name, numpy_view, view_at
from isostep.report import Report
from isostep.rows import obstacle, row_runner
from isostep.rules import Rule
from isostep.stepper import DTYPES, Stepper


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
        self._factors: list[float] = []
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
        self._tensors: list[Any] = []
        self._where = addresses([])
        self._shapes: list[Any] = []
        self._own_kinds: list[Any] = []
        self._grads = np.zeros(0, dtype=np.int64)
        self._held: list[Any] = []
        self._apart = False
        # Of the last step in which all had a dense gradient.
        self._kinds: list[Any] = []
        self._dtypes: tuple[str | None, ...] | None = None

    def stale(self) -> bool:
        """Whether a parameter or an accumulator lies elsewhere than before, or a parameter has
        another dtype in what may be the same place."""
        moved = not np.array_equal(addresses(self._tensors), self._where)
        return moved or list(map(_dtype, self._params)) != self._own_kinds

    # -- steps -----------------------------------------------------------------------------------

    def step(self, pairs: Sequence[tuple[Any, Any]], owners: Sequence[int]) -> Report | None:
        """One step.

        Args:
            pairs: parameters, each with its gradient.
            owners: the parameter group of each.
        """
        self._take(pairs, owners)
        self._refresh()
        try:
            rows, dtypes = self._collect(pairs)
            return self._run([p for p, _ in pairs], dtypes, rows)
        finally:
            self._held = []

    def usual_step(self, params: Sequence[Any], grads: list[Any]) -> tuple[bool, Report | None]:
        """One step if it is like those before: every parameter that is known has a gradient which
        lies as it does. That is looked at in few calls for all of them.

        Args:
            params: the parameters.
            grads: their gradients, or None.

        Returns:
            Whether it was so, and else nothing was done; and the report.
        """
        if self._dtypes is None or not self._usual(params, grads):
            return False, None
        self._refresh()
        if self._apart:
            return False, None
        self._grads = addresses(grads)
        return True, self._run(params, self._dtypes, {})

    def _usual(self, params: Sequence[Any], grads: list[Any]) -> bool:
        return (
            len(params) == len(self._params)
            and all(map(operator.is_, params, self._params))
            and all(map(operator.is_not, grads, repeat(None)))
            and not any(map(_frozen, params))
            and all(map(_is_dense, grads))
            and all(map(_is_contiguous, grads))
            and list(map(_shape, grads)) == self._shapes
            and list(map(_dtype, grads)) == self._kinds
        )

    def _run(
        self,
        params: Sequence[Any],
        dtypes: tuple[str | None, ...],
        rows: dict[int, Runner | None],
    ) -> Report | None:
        made = self.stepper
        rescale = getattr(self._optimizer, "_rescale_grad", 1.0)
        before = made.iteration
        scale = 1.0 / rescale if rescale else float("inf")
        report = made.step(dtypes, self._bind, scale, [r for r in rows.values() if r])
        if made.iteration != before:
            empty = [k for k, runner in rows.items() if runner is None]
            made.steps[empty] += 1  # a gradient without rows is a step all the same
            for param in params:  # kernels write past autograd's eyes
                param._bump_inplace_version()
        return report

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
        for group in sorted(set(belongs)):
            members = [p for p, g in zip(params, belongs, strict=True) if g == group]
            settings = self._optimizer._param_groups[group] if self._optimizer.grouped else {}
            accumulators.create(self._optimizer, members, settings)
        self._params += params
        self._owners += belongs
        self._raw, self._apart = raw, self._hyper.foreign(raw)
        made = self.stepper
        known_leaves = len(made.leaves)
        made.regroup(groups, membership[:known_leaves])
        for param, group in zip(params, membership[known_leaves:], strict=True):
            self._places[id(param)] = len(made.leaves)
            self._by_name[param.name] = param
            made.add(param.name, numpy_view(param), group, self._counts.get(param.name, 0))
        self._slots.fresh = set()
        self._tensors = [*self._params, *self._slots.tensors]
        self._where = addresses(self._tensors)
        self._shapes = [p.shape for p in self._params]
        self._own_kinds = list(map(_dtype, self._params))
        self._dtypes = None

    def _check_names(self, params: Sequence[Any]) -> None:
        """Refuse two parameters of one name, which would share accumulators."""
        names = {param.name for param in self._params}
        for param in params:
            if param.name in names:
                raise ParameterError(
                    f"two parameters are called {param.name!r}, and Paddle keeps accumulators by "
                    f"name: build the layers under one paddle.utils.unique_name.guard(), or give "
                    f"them names by ParamAttr(name=...)"
                )
            names.add(param.name)

    def _refresh(self) -> None:
        """Follow what was set since the last step."""
        raw = self._hyper.raw(self._params, self._owners)
        if raw != self._raw:
            groups, membership, self._factors = self._hyper.groups(raw)
            self.stepper.regroup(groups, membership)
            self._raw, self._apart = raw, self._hyper.foreign(raw)
        rate = float(self._optimizer.get_lr())
        for group, factor in zip(self.stepper.groups, self._factors, strict=True):
            group.values["lr"] = rate * factor

    def _collect(
        self, pairs: Sequence[tuple[Any, Any]]
    ) -> tuple[dict[int, Runner | None], tuple[str | None, ...]]:
        """Where the gradients lie, their dtypes, and what steps those of which only rows are
        there."""
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
            if self._optimizer.lazy_in(self._owners[k]):
                self._check_rows(k)
                self._held.append(values)
                rows[k], grads[k] = row_runner(self.stepper, k, index, values), None
            else:
                grads[k] = np.zeros(tuple(self._shapes[k]), values.dtype)
                grads[k][index] = values
        self._held.append(grads)
        self._grads, dtypes = self._looked_at(grads)
        if not rows and not any(isinstance(g, np.ndarray | None) for g in grads):
            self._kinds, self._dtypes = [g.dtype for g in grads], dtypes
        return rows, dtypes

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
                if grad.shape != self._shapes[k]:
                    raise GradientError(
                        f"the gradient of {self._params[k].name!r} has shape {grad.shape}, and the "
                        f"parameter {self._shapes[k]}; nothing was changed"
                    )
                found[k], dtypes[k] = grad.data_ptr() or 0, _NAMES.get(grad.dtype)
                if dtypes[k] is None:
                    raise GradientError(
                        f"the gradient of {self._params[k].name!r} is {grad.dtype}: that has no "
                        f"kernel; use one of {', '.join(DTYPES)}"
                    )
        return found, tuple(dtypes)

    def _check_rows(self, k: int) -> None:
        why = obstacle(self.stepper, self.stepper.leaves[k])
        if why:
            raise GradientError(
                f"lazy_mode=True: the sparse gradient of {self._params[k].name!r} cannot be "
                f"stepped row by row: {why}"
            )

    def _bind(self, runner: Runner) -> None:
        assert isinstance(runner, NativeRunner)
        runner.refresh("grad", self._grads[runner.cohort.members])

    # -- counts ----------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """The steps that each parameter has had, by name."""
        names = [leaf.name for leaf in self.stepper.leaves]
        return dict(zip(names, self.stepper.steps.tolist(), strict=True))


_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")
_frozen = operator.attrgetter("stop_gradient")
_is_dense, _is_contiguous = paddle.Tensor.is_dense, paddle.Tensor.is_contiguous
_NAMES = {getattr(paddle, name): name for name in DTYPES}


def _merged(grad: Any) -> tuple[Any, Any]:
    """The rows that a sparse gradient has, each once, and their values; duplicates are summed.

    Paddle's own function for this leaves rows unsorted, and does not know bfloat16.
    """
    kept = grad.get_selected_rows()
    rows, tensor = np.array(kept.rows(), dtype=np.int64), kept.get_tensor()
    values = view_at(tensor._ptr() if len(rows) else 0, tensor.shape(), dtype_name(grad.dtype))
    rows, place = np.unique(rows, return_inverse=True)
    sums = np.zeros((len(rows), *values.shape[1:]), np.result_type(values.dtype, np.float32))
    np.add.at(sums, place, values.astype(sums.dtype))
    return rows, sums
