"""The gradients of one step: which are dense, which have rows only, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from isostep.engines.cohort import Runner
from isostep.errors import GradientError
from isostep.paddle.tensors import dtype_name, has_memory, on_cpu, view_at
from isostep.rows import obstacle, row_runner
from isostep.stepper import DTYPES, Stepper

_NAMES = {getattr(paddle, name): name for name in DTYPES}

_LOW = (paddle.float16, paddle.bfloat16)


class Gradients:
    """The gradients of one step, for a stepper.

    Args:
        stepper: whose parameters they are of.
        params: the parameters, in the order of its leaves.
        given: gradients by place, of those that have one.
        lazily: by place, whether a gradient with rows only steps nothing but these.

    Attributes:
        dtypes: for each parameter the dtype of its gradient as the stepper takes it.
        addresses: of the gradients, in the order of the leaves.
        rows: what steps the rows of a parameter, by its place.
        empty: places of parameters whose gradient has no rows.

    Raises:
        GradientError: a gradient cannot be stepped.
    """

    def __init__(
        self,
        stepper: Stepper,
        params: Sequence[Any],
        given: dict[int, Any],
        lazily: Any,
    ) -> None:
        self.rows: list[Runner] = []
        self.empty: list[int] = []
        self._stepper, self._params = stepper, params
        self._held: list[Any] = []  # copies live as long as the step
        dense = {k: self._dense(k, grad, lazily) for k, grad in given.items()}
        dense = {k: grad for k, grad in dense.items() if grad is not None}
        places = list(dense)
        self.addresses = np.zeros(len(params), dtype=np.int64)
        self.addresses[places] = [_address(grad) for grad in dense.values()]
        found: list[str | None] = [None] * len(params)
        for k, grad in dense.items():
            found[k] = grad.dtype.name if isinstance(grad, np.ndarray) else _NAMES[grad.dtype]
        self.dtypes = tuple(found)
        self._held.append(dense)

    def _dense(self, k: int, grad: Any, lazily: Any) -> Any:
        """A gradient as a kernel takes it: an array or a contiguous tensor; None if it has rows
        that are stepped on their own."""
        param = self._params[k]
        if grad.dtype not in _NAMES:
            raise GradientError(
                f"the gradient of {param.name!r} is {grad.dtype}: that has no kernel; use one of "
                f"{', '.join(DTYPES)}"
            )
        if not grad.is_dense():
            return self._of_rows(k, grad, lazily)
        if grad.shape != param.shape or not has_memory(grad) or not on_cpu(grad):
            raise GradientError(
                f"the gradient of {param.name!r} has shape {grad.shape} on {_place(grad)}, and the "
                f"parameter {param.shape} on {_place(param)}; nothing was changed"
            )
        return grad if grad.is_contiguous() else grad.contiguous()

    def _of_rows(self, k: int, grad: Any, lazily: Any) -> Any:
        param = self._params[k]
        index, values = _merged(grad)
        _check_rows(param, index, values)
        if not lazily(k):
            dense = np.zeros(tuple(param.shape), values.dtype)
            dense[index] = values
            return dense
        why = obstacle(self._stepper, self._stepper.leaves[k])
        if why:
            raise GradientError(
                f"lazy_mode=True: the sparse gradient of {param.name!r} cannot be stepped row by "
                f"row: {why}"
            )
        self._held.append(values)
        runner = row_runner(self._stepper, k, index, values)
        if runner is None:
            self.empty.append(k)
        else:
            self.rows.append(runner)
        return None


def check_shapes(params: Sequence[Any], grads: Sequence[Any]) -> None:
    """Refuse dense gradients of another shape than their parameters.

    Raises:
        GradientError: there is one.
    """
    for param, grad in zip(params, grads, strict=True):
        if grad.is_dense() and (grad.shape != param.shape or not has_memory(grad)):
            raise GradientError(
                f"the gradient of {param.name!r} has shape {grad.shape} on {_place(grad)}, and the "
                f"parameter {param.shape} on {_place(param)}; nothing was changed"
            )


def check_fit(params: Sequence[Any], grads: Sequence[Any], masters: bool) -> None:
    """Refuse gradients that Paddle's own step runs over, or fails on in the middle of its loop.

    Args:
        params, grads: one for each other.
        masters: whether parameters of low precision have float32 copies, which take float32, too.

    Raises:
        GradientError: there is one.
    """
    check_shapes(params, grads)
    for param, grad in zip(params, grads, strict=True):
        copied = masters and param.dtype in _LOW and grad.dtype == paddle.float32
        if grad.dtype != param.dtype and not copied:
            raise GradientError(
                f"the gradient of {param.name!r} is {grad.dtype} and the parameter {param.dtype}, "
                f"which Paddle's own step does not take: cast it; nothing was changed"
            )


def widened(grad: Any, param: Any) -> Any:
    """A dense gradient in the dtype of its parameter, if that has more digits."""
    if not paddle.in_dynamic_mode() or not grad.is_dense():
        return grad
    return grad.astype(param.dtype) if grad.element_size() < param.element_size() else grad


def _address(grad: Any) -> int:
    return grad.ctypes.data if isinstance(grad, np.ndarray) else grad.data_ptr() or 0


def _place(tensor: Any) -> str:
    return str(tensor.place) if tensor._is_initialized() else "no memory"


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
