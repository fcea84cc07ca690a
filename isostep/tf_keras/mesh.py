"""Laying values out on a mesh of `tensorflow.experimental.dtensor` as a variable is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

Layout: Any = dtensor.Layout


def check(variables: Sequence[Any], mesh: Any) -> None:
    """Raise if variables are not on the mesh of their optimizer.

    Args:
        variables: the model's.
        mesh: the optimizer's; None: it has none.

    Raises:
        ValueError: one is not a `DVariable` of this mesh.
    """
    for variable in variables:
        layout = getattr(variable, "layout", None)
        if mesh is None and layout is not None:
            raise ValueError(
                f"{variable.name!r} lies on a mesh, and the optimizer does not: make the optimizer "
                f"with mesh=variable.layout.mesh"
            )
        if mesh is not None and (layout is None or layout.mesh != mesh):
            where = (
                "on no mesh" if layout is None else f"on another, with axes {layout.mesh.dim_names}"
            )
            raise ValueError(
                f"{variable.name!r} lies {where}; with mesh= all variables are "
                f"tf.experimental.dtensor.DVariable on that mesh: make it one, or leave out mesh"
            )


def replicated(mesh: Any, rank: int) -> Any:
    """The layout of a value that every device has in full."""
    return Layout.replicated(mesh, rank=rank)


def without_axis(layout: Any, gone: int) -> Any:
    """A layout that lacks an axis."""
    specs = [s for axis, s in enumerate(layout.sharding_specs) if axis != gone]
    return Layout(specs, layout.mesh)


def laid_out(value: Any, layout: Any) -> Any:
    """A value, on the mesh or not, with this layout."""
    tensor = tf.convert_to_tensor(value)
    if not dtensor.is_dtensor(tensor):
        tensor = dtensor.copy_to_mesh(tensor, replicated(layout.mesh, len(tensor.shape)))
    if dtensor.fetch_layout(tensor) == layout:
        return tensor
    return dtensor.relayout(tensor, layout)


def zeros(shape: Any, dtype: Any, layout: Any) -> Any:
    """Zeros with this layout, each part made where it lies."""
    return dtensor.call_with_layout(tf.zeros, layout, shape=shape, dtype=dtype)


def variable(value: Any, layout: Any, name: str | None) -> Any:
    """A variable of an optimizer with this value and layout."""
    return dtensor.DVariable(laid_out(value, layout), name=name, trainable=False)
