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
        leaves = [jnp.asarray(leaf) for _, leaf in with_path]
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
    sharding = None if isinstance(like, Tracer) else getattr(like, "sharding", None)
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *[None] * (like.ndim - len(sharding.spec)))
        kept = [s for axis, s in enumerate(spec) if axis != gone]
        return jnp.full(
            shape, value, dtype, device=NamedSharding(sharding.mesh, PartitionSpec(*kept))
        )
    return jnp.full(shape, value, dtype)
