"""`jax.numpy` as the namespace of traced steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from isostep.engines.array import OPERATORS


class JaxNamespace:
    """JAX's functions under the names that a trace has."""

    def cast(self, x: Any, dtype: str) -> Any:
        return jnp.asarray(x, dtype)

    def dtype(self, x: Any) -> str:
        return x.dtype.name

    def apply(self, op: str, args: list[Any]) -> Any:
        return _OPERATIONS[op](*args)

    def reduce(self, op: str, x: Any, axes: tuple[int, ...]) -> Any:
        return (jnp.sum if op == "sum" else jnp.mean)(x, axis=axes, keepdims=True)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return jnp.reshape(x, shape)


_OPERATIONS: dict[str, Any] = OPERATORS | {
    "sqrt": jnp.sqrt,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "log": jnp.log,
    "expm1": jnp.expm1,
    "isfinite": lambda x: jnp.isfinite(x).astype(jnp.finfo(x.dtype).dtype),
    "inner": lambda x, y: (x * jnp.conj(y)).real,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "where": jnp.where,
}
