"""What is looked at before each step: every change of a tensor or of a dict is seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

from isostep.paddle import raw
from isostep.paddle.arrivals import Arrivals
from isostep.paddle.memory import Watch, overlapping
from isostep.stepper import DTYPES

CPU = paddle.CPUPlace()


@pytest.fixture(params=["by machine code", "by asking"])
def looked(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by asking":
        monkeypatch.setattr(raw, "offsets", lambda: None)
    else:
        assert raw.offsets() is not None


def _given(tensor: Any, other: Any) -> Any:
    """Make a tensor a view of the same kind as another."""
    tensor.get_tensor()._share_data_with(other.get_tensor())
    return other


CHANGES: dict[str, Callable[[Any], Any]] = {
    "reshaped": lambda t: t.reshape_([2, 8]),
    "an axis more": lambda t: t.unsqueeze_(0),
    "cast": lambda t: t.cast_("float64"),
    "of integers": lambda t: t.get_tensor().set(np.ones((4, 4), "int32"), CPU),
    "smaller": lambda t: t.get_tensor().set(np.ones((2, 2), "float32"), CPU),
    "larger": lambda t: t.get_tensor().set(np.ones((8, 8), "float32"), CPU),
    "of other dims": lambda t: t.get_tensor()._set_dims([2, 4]),
    "of dims without memory": lambda t: t.get_tensor()._set_dims([99, 4]),
    "transposed": lambda t: _given(t, t.detach().transpose([1, 0])),
    "a part": lambda t: _given(t, paddle.ones([8, 4])[2:6]),
    "of other memory": lambda t: paddle.ones([4, 4])._share_buffer_to(t),
    "given up": lambda t: t._clear_data(),
    "nothing": lambda t: t._clear(),
    "no pointer": lambda t: t._clear_dataptr(),
    "another": lambda t: t._set_impl(paddle.ones([4, 4])),
}


@pytest.mark.usefixtures("looked")
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("place", [0, 3])
def test_a_change_is_seen(name: str, place: int) -> None:
    tensors = [paddle.ones([4, 4]) for _ in range(4)]
    watch = Watch(tensors, [])
    assert watch.same([])
    kept = CHANGES[name](tensors[place])
    assert not watch.same([])
    assert kept is not tensors


@pytest.mark.usefixtures("looked")
def test_new_values_are_no_change() -> None:
    tensors = [paddle.ones(shape) for shape in ([], [3], [0, 2], [2, 3, 4])]
    watch = Watch(tensors, [])
    for tensor in tensors:
        tensor.set_value(paddle.zeros(tensor.shape))
        tensor.add_(paddle.ones(tensor.shape))
        tensor.stop_gradient = False
        tensor.name = f"renamed {tensor.name}"
    assert watch.same([])


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an entry is added": lambda d: d.update(b=1),
    "an entry is replaced": lambda d: d.update(a=paddle.ones([1])),
    "an entry is gone": lambda d: d.pop("a"),
    "all are gone": lambda d: d.clear(),
    "a key is another": lambda d: d.update(b=d.pop("a")),
}


@pytest.mark.usefixtures("looked")
@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("kind", [dict, lambda: defaultdict(dict)])
def test_edits_of_dicts_are_seen(name: str, kind: Any) -> None:
    held = [{"a": paddle.ones([1])}, kind()]
    held[1]["a"] = paddle.ones([1])
    watch = Watch([], held)
    assert watch.same(held)
    assert not watch.same([held[0]])
    assert not watch.same([held[0], dict(held[1])])
    EDITS[name](held[1])
    assert not watch.same(held)


# -- gradients -------------------------------------------------------------------------------------

SHAPES: list[list[int]] = [[4, 4], [3], [], [2, 1, 3], [0, 2]]


@pytest.mark.usefixtures("looked")
@pytest.mark.parametrize("dtype", DTYPES)
def test_usual_gradients_are_found(dtype: str) -> None:
    params = [paddle.ones(shape, dtype) for shape in SHAPES]
    grads = [paddle.ones(shape, dtype) for shape in SHAPES]
    grads[0] = paddle.ones([8, 4], dtype)[2:6]
    found = Arrivals(params).look(grads)
    assert found is not None
    assert found[0].tolist()[:4] == [g.data_ptr() for g in grads[:4]]
    assert found[1] == [dtype] * len(SHAPES)


@pytest.mark.usefixtures("looked")
def test_gradients_of_several_dtypes_are_found() -> None:
    params = [paddle.ones([4], dtype) for dtype in DTYPES]
    found = Arrivals(params).look([paddle.ones([4], dtype) for dtype in reversed(DTYPES)])
    assert found is not None
    assert found[1] == list(reversed(DTYPES))


UNUSUAL: dict[str, Callable[[], Any]] = {
    "of another shape": lambda: paddle.ones([2, 8]),
    "of another rank": lambda: paddle.ones([16]),
    "of other strides": lambda: paddle.ones([4, 4]).transpose([1, 0]),
    "expanded": lambda: paddle.as_strided(paddle.ones([4]), [4, 4], [0, 1]),
    "of integers": lambda: paddle.ones([4, 4], "int32"),
    "complex": lambda: paddle.ones([4, 4], "complex64"),
    "of rows": lambda: paddle.base.core.eager.Tensor(
        paddle.base.core.VarDesc.VarType.FP32,
        [4, 4],
        "rows",
        paddle.base.core.VarDesc.VarType.SELECTED_ROWS,
        False,
    ),
}


@pytest.mark.usefixtures("looked")
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_gradients_are_told(name: str) -> None:
    params = [paddle.ones([4, 4]) for _ in range(3)]
    usual = [paddle.ones([4, 4]) for _ in range(2)]
    arrivals = Arrivals(params)
    assert arrivals.look([*usual, UNUSUAL[name]()]) is None
    assert arrivals.look([*usual, usual[0]]) is not None


@pytest.mark.usefixtures("looked")
def test_a_gradient_without_its_memory_is_not_usual() -> None:
    if raw.offsets() is None:  # Paddle refuses the address itself
        return
    gradient = paddle.ones([4, 4])
    arrivals = Arrivals([paddle.ones([99, 4])])
    gradient.get_tensor()._set_dims([99, 4])
    assert arrivals.look([gradient]) is None


# -- shared memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([(0, 4), (4, 8), (8, 9)], None),
        ([(0, 4), (3, 8)], (0, 1)),
        ([(6, 8), (0, 9), (9, 12)], (0, 1)),
        ([(0, 9), (2, 3), (3, 4)], (0, 1)),
        ([(4, 4), (0, 9)], None),
        ([(0, 2), (8, 9), (2, 9)], (1, 2)),
    ],
)
def test_shared_memory_is_found(spans: list[tuple[int, int]], found: Any) -> None:
    whole = paddle.ones([16])
    assert overlapping([whole[a:b] for a, b in spans]) == found


def test_memory_that_strided_tensors_share_is_found() -> None:
    whole = paddle.ones([4, 6])
    turned, columns = whole.transpose([1, 0]), whole[:, 1:3]
    assert overlapping([turned, columns]) == (0, 1)
    assert overlapping([whole[:2], whole[2:, ::2]]) is None
    assert overlapping([whole[0], columns]) == (0, 1)
