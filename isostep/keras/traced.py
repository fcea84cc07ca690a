"""`apply` as array code: what JAX and TensorFlow compile into their own training step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from keras import backend, ops

from isostep import recipe as recipes
from isostep.engines import traced
from isostep.engines.leaf import Leaf
from isostep.keras.namespace import KerasNamespace
from isostep.keras.variables import stand_in
from isostep.recipe import Recipe
from isostep.stepper import Stepper
from isostep.tracing import trace

XP = KerasNamespace()
Stores = list[dict[str, Any]]


class TracedApply:
    """Steps the variables of one optimizer by array code.

    Args:
        optimizer: a `FusedApply`; its variables are read and assigned, in whatever scope Keras has
            set up.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._accumulates = bool(optimizer.gradient_accumulation_steps)
        self._stepper: Stepper | None = None

    @property
    def ran(self) -> list[str]:
        """What runs a step."""
        return [f"array code, {backend.backend()}"]

    def apply(self, grads: list[Any], variables: list[Any]) -> None:
        """One step of `variables`; those without gradient are not among them."""
        given = {self._index(v): dense(g) for g, v in zip(grads, variables, strict=True)}
        if self._accumulates:
            self._accumulate(given)
        else:
            self._assign(*self._step(given))

    def update(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable by its rule alone."""
        index = self._index(variable)
        own = {"clip": None, "decay": None, "average": False, "overwrite": False}
        leaf = self._leaves()[index]
        recipe = replace(self._made().recipe(leaf), **own)
        tensor = self._tensor(leaf, recipe, dense(gradient), learning_rate, variable)
        stores = traced.step(XP, [tensor]).stores[0]
        for name, value in stores.items():
            self._optimizer.assign(variable if name == "param" else self._kept(leaf, name), value)

    # -- one step --------------------------------------------------------------------------------

    def _made(self) -> Stepper:
        if self._stepper is None:

            def allocate(leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
                return stand_in(self._kept(leaf, name))

            averaged = self._optimizer.use_ema and not self._accumulates
            made: Stepper = self._optimizer.stepper("array", averaged, stand_in, allocate)
            self._stepper = made
        return self._stepper

    def _leaves(self) -> list[Leaf]:
        return self._made().leaves

    def _kept(self, leaf: Leaf, name: str) -> Any:
        return self._optimizer.kept(leaf, name)

    def _index(self, variable: Any) -> int:
        return self._optimizer._get_variable_index(variable)

    def _variable(self, leaf: Leaf, name: str) -> Any:
        if name == "param":
            return self._optimizer._trainable_variables[int(leaf.name)]
        return self._kept(leaf, name)

    def _step(self, given: dict[int, Any]) -> tuple[list[Leaf], Stores]:
        """The new values of everything that a step with these gradients changes."""
        made = self._made()
        idle = made.options.ema is not None
        leaves = [f for k, f in enumerate(made.leaves) if k in given or idle]
        rate = self._optimizer.learning_rate
        tensors: list[traced.TracedTensor] = []
        for leaf in leaves:
            gradient = given.get(int(leaf.name))
            recipe = replace(made.recipe(leaf), idle=gradient is None)
            tensors.append(self._tensor(leaf, recipe, gradient, rate))
        return leaves, traced.step(XP, tensors).stores

    def _tensor(
        self, leaf: Leaf, recipe: Recipe, gradient: Any, rate: Any, variable: Any = None
    ) -> traced.TracedTensor:
        names = [n for n in leaf.arrays if n != "param" and (n != "average" or recipe.average)]
        arrays = {n: ops.convert_to_tensor(self._kept(leaf, n)) for n in names}
        param = self._variable(leaf, "param") if variable is None else variable
        arrays["param"] = ops.convert_to_tensor(param)
        if gradient is not None:
            arrays["grad"] = gradient
        wide = backend.standardize_dtype(param.dtype) == "float64"
        dtype = "float64" if wide else "float32"
        return traced.TracedTensor(
            trace(recipe),
            leaf.array.shape,
            leaf.factored_axes,
            arrays,
            self._coefficients(leaf, rate, dtype),
            dtype,
        )

    def _coefficients(self, leaf: Leaf, rate: Any, dtype: str) -> dict[str, Any]:
        optimizer, made = self._optimizer, self._made()
        # JAX has float64 only where the user has asked for it.
        wide = "float32" if backend.backend() == "jax" and dtype != "float64" else "float64"
        t: Any = XP.cast(optimizer.iterations, wide) + 1.0
        group = made.groups[leaf.group]
        h = SimpleNamespace(**group.values)
        h.lr = ops.cast(rate, wide) if h.lr is None else h.lr
        if callable(h.weight_decay):
            h.weight_decay = ops.cast(h.weight_decay(optimizer.iterations), wide)
        return recipes.coefficients(
            traced.TracedScalars(XP, wide),
            t,
            t,
            h,
            rule=made.rule,
            clip=made.options.clip,
            clip_eps=made.dialect.clip_eps,
            ema=made.options.ema,
            decay=made.spelling.decay,
            decay_times_lr=made.spelling.decay_times_lr,
        )

    def _assign(self, leaves: list[Leaf], stores: Stores) -> None:
        for leaf, values in zip(leaves, stores, strict=True):
            for name, value in values.items():
                self._variable(leaf, name).assign(value)

    # -- several gradients to a step -------------------------------------------------------------

    def _accumulate(self, given: dict[int, Any]) -> None:
        """Add up gradients; every so many of them are a step. The average moves each time, as
        Keras' does."""
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps
        now = ops.equal((optimizer._iterations + 1) % steps, 0)
        sums = {k: optimizer._accumulated_gradients[k] for k in given}
        total = {k: ops.cast(g, sums[k].dtype) + sums[k] for k, g in given.items()}
        mean = {k: g / steps for k, g in total.items()}
        leaves = [self._leaves()[k] for k in given]
        stored = [list(leaf.arrays) for leaf in leaves]

        def stepped() -> list[Any]:
            _, stores = self._step(mean)
            return [
                values[name] for names, values in zip(stored, stores, strict=True) for name in names
            ]

        def kept() -> list[Any]:
            return [
                ops.convert_to_tensor(self._variable(leaf, name))
                for leaf, names in zip(leaves, stored, strict=True)
                for name in names
            ]

        new: Any = ops.cond(now, stepped, kept)
        values = iter(new)
        for leaf, names in zip(leaves, stored, strict=True):
            for name in names:
                self._variable(leaf, name).assign(next(values))
        for k, g in total.items():
            sums[k].assign(ops.where(now, ops.zeros_like(g), g))
        if optimizer.use_ema:
            self._average()

    def _average(self) -> None:
        """Move the average alone."""
        made = self._made()
        averaged = self._optimizer.options(averaged=True)
        made.options, before = averaged, made.options
        try:
            tensors: list[traced.TracedTensor] = []
            for leaf in made.leaves:
                recipe = replace(made.recipe(leaf), idle=True)
                tensor = self._tensor(leaf, recipe, None, self._optimizer.learning_rate)
                tensor.arrays["average"] = ops.convert_to_tensor(self._kept(leaf, "average"))
                tensors.append(tensor)
            self._assign(made.leaves, traced.step(XP, tensors).stores)
        finally:
            made.options = before


def dense(gradient: Any) -> Any:
    """The gradient as an array; rows of an embedding that TensorFlow gives alone are spread out."""
    if hasattr(gradient, "indices") and backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(gradient)
    return ops.convert_to_tensor(gradient)
