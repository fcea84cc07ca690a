"""Pytrees of parameters: names for their leaves, and arrays that lie as they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import GetAttrKey, keystr

from isostep.errors import HyperparameterError


@dataclass(frozen=True)
class Form:
    """What is known of a tree of parameters while a step is traced.

    Args:
        tree: its structure.
        names: of its leaves: the keys on the way to each, between slashes; without the attribute
            `value` of a wrapper that holds nothing else, such as `flax.nnx.Param`.
        shapes, dtypes: of its leaves.
    """

    tree: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, params: Any) -> tuple[Form, list[Any]]:
        """The form of a tree, and its leaves."""
        with_path, tree = jax.tree_util.tree_flatten_with_path(params)
        names = _names([path for path, _ in with_path])
        leaves = [as_array(leaf) for _, leaf in with_path]
        dtypes = tuple(leaf.dtype.name for leaf in leaves)
        return cls(tree, names, tuple(leaf.shape for leaf in leaves), dtypes), leaves

    def leaves(self, other: Any, what: str) -> list[Any]:
        """The leaves of another tree of this form; None stands where it has nothing.

        Raises:
            HyperparameterError: it has another form.
        """
        try:
            return self.tree.flatten_up_to(other)
        except (ValueError, TypeError) as error:
            raise HyperparameterError(
                f"{what} has another structure than the parameters: {error}"
            ) from error

    def tree_of(self, leaves: Sequence[Any]) -> Any:
        """A tree of this form."""
        return self.tree.unflatten(leaves)


def as_array(leaf: Any) -> Any:
    """A leaf as an array of JAX; what stands for one, and what JAX has no arithmetic for, as it
    is."""
    if isinstance(leaf, jax.ShapeDtypeStruct) or getattr(leaf, "dtype", None) == jax.dtypes.float0:
        return leaf
    return jnp.asarray(leaf)


def _names(paths: Sequence[Any]) -> tuple[str, ...]:
    inside = Counter(path[:-1] for path in paths)
    wrapped = GetAttrKey("value")
    return tuple(
        keystr(
            path[:-1] if path[-1:] == (wrapped,) and inside[path[:-1]] == 1 else path,
            simple=True,
            separator="/",
        )
        for path in paths
    )


def full(like: Any, shape: tuple[int, ...], gone: int | None, dtype: Any, value: float) -> Any:
    """An array of one value that is sharded as another is.

    Args:
        like: the other array.
        shape: the new one's shape.
        gone: the axis of the other that the new one lacks.
        dtype: the new one's dtype.
        value: what it is filled with.
    """
    return jnp.full(shape, value, dtype, device=_sharding(like, gone))


def without_axis(array: Any, like: Any, gone: int) -> Any:
    """An array, sharded as another is that has one axis more."""
    sharding = _sharding(like, gone)
    return array if sharding is None else jax.device_put(array, sharding)


def on_mesh_of(like: Any, array: Any) -> Any:
    """An array, on every device of the mesh on which another lies."""
    sharding = _sharding(like, None)
    if sharding is None:
        return array
    return jax.device_put(array, NamedSharding(sharding.mesh, PartitionSpec()))


def _sharding(like: Any, gone: int | None) -> NamedSharding | None:
    """The sharding of an array, or of what stands for one, without an axis; None if it has no
    names of axes, or if it is traced."""
    sharding = None if isinstance(like, Tracer) else getattr(like, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    spec = (*sharding.spec, *[None] * (len(like.shape) - len(sharding.spec)))
    kept = [s for axis, s in enumerate(spec) if axis != gone]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))
