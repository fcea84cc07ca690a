"""Keras' optimizer on torch and isostep's, side by side through the same edits.

After each step isostep's numbers are held against Keras' own class in float64, from the state that
was there before the step; then Keras' world takes over isostep's values, so that differences do not
add up. Keras' world decides what raises.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

import isostep
import isostep.keras

from ...fuzzing import Line
from ...interruptions import Struck, by_exception, instructions
from .edits import EDITS
from .gradients import KINDS, given
from .world import DTYPES, EPS, Nothing, World, same_bits

# Numbers of few bits: Keras has some coefficients in float32.
ADAM = {"learning_rate": 0.125, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25}
RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"learning_rate": 0.125, "momentum": 0.75, "nesterov": True, "weight_decay": 0.125}),
    ("SGD", {"learning_rate": 0.125}),
    ("Adagrad", {"learning_rate": 0.25, "initial_accumulator_value": 0.25, "epsilon": 0.25}),
    ("RMSprop", {"learning_rate": 0.125, "rho": 0.75, "momentum": 0.5, "epsilon": 0.25}),
    ("RMSprop", {"learning_rate": 0.125, "rho": 0.75, "centered": True, "epsilon": 0.25}),
    ("Adadelta", {"learning_rate": 0.5, "rho": 0.75, "epsilon": 0.125}),
    ("Adam", ADAM),
    ("AdamW", ADAM | {"amsgrad": True, "weight_decay": 0.125}),
    (
        "Adafactor",
        {"learning_rate": 0.25, "clip_threshold": 0.75, "epsilon_1": 0.125, "epsilon_2": 2**-7},
    ),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"clipnorm": 0.5},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.5},
    {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 2},
    {"gradient_accumulation_steps": 2},
    {"loss_scale_factor": 4.0},
)
FIRST = (len(RULES), len(OPTIONS), len(DTYPES), 4, 8)
TOLERANCE = 4096.0
"""Roundings, as in the test of torch: epsilons are 1/8 or more, rates 1/4 or less, squares that
hold what is left of numbers below 8."""


# -- how a step is taken ---------------------------------------------------------------------------


def _all(w: World, grads: list[Any]) -> None:
    w.optimizer.apply(grads, w.variables)


def _as_built(w: World, grads: list[Any]) -> None:
    w.optimizer.apply(grads)


def _some(w: World, grads: list[Any]) -> None:
    """A subset, in another order."""
    w.optimizer.apply(grads[::-1][:2], w.variables[::-1][:2])


def _pairs(w: World, grads: list[Any]) -> None:
    w.optimizer.apply_gradients(zip(grads, w.variables, strict=True))


def _unknown(w: World, grads: list[Any]) -> None:
    w.optimizer.apply([grads[0]], [keras.Variable(w.values((2,)))])


def _twice(w: World, grads: list[Any]) -> None:
    w.optimizer.apply(grads[:1] * 2, w.variables[:1] * 2)


def _empty(w: World, grads: list[Any]) -> None:
    w.optimizer.apply([], [])


def _in_a_thread(w: World, grads: list[Any]) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            _all(w, grads)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


HOW = (_all, _all, _as_built, _some, _pairs, _unknown, _twice, _empty, _in_a_thread, _all)
STRUCK = 9
NUMBERS = 2 * len(KINDS)


class Pair:
    """The two worlds.

    Args:
        line: numbers of rule, options, dtype, how many variables, and the seed.
    """

    def __init__(self, line: Line) -> None:
        rule, option, dtype, count, seed = line.numbers
        self.rule, arguments = RULES[rule]
        self.options = OPTIONS[option]

        # Factors are float32 here where Keras' are in the dtype of the variable.
        held = DTYPES[dtype % 2 if self.rule == "Adafactor" else dtype]

        def world(module: Any) -> World:
            kind = getattr(module, self.rule)
            return World(lambda: kind(**arguments, **self.options), seed, held, 1 + count)

        self.theirs, self.ours = world(keras.optimizers), world(isostep.keras)

    def do(self, line: Line) -> None:
        """An edit, or a step."""
        i, k = line.numbers
        if line.what != "step":
            a, b = (_outcome(EDITS[line.what], w, i, k) for w in (self.theirs, self.ours))
            # What does not fit is refused, where Keras warns; both take nothing of it.
            refused = isinstance(b, isostep.StateError) and line.what == "load_what_does_not_fit"
            # A slot that Keras keeps and isostep does not is not found.
            assert type(a) is type(b) or refused or isinstance(b, Nothing), (a, b)
            self.theirs.go_on_like(self.ours)
            self._alike("an edit")
            return
        self._step(i, k)

    @property
    def _accumulates(self) -> bool:
        return "gradient_accumulation_steps" in self.options

    def _step(self, i: int, k: int) -> None:
        how = HOW[k % len(HOW)]
        if list(KINDS)[i % len(KINDS)] == "infinite" and self._accumulates:
            i = 0  # on torch Keras multiplies sums by zero, and they are NaN for ever
        theirs, ours = self.theirs, self.ours
        before, was = ours.snapshot(), theirs.snapshot()
        right = Reference(ours, how, given(theirs, i, k))
        # Keras' fused operations take tensors only.
        plain = [g if g is None else torch.as_tensor(_again(g)) for g in right.grads]
        a = _outcome(how, theirs, plain)
        grads = given(ours, i, k)
        if how is _twice:
            grads = [g if g is None else torch.as_tensor(g) for g in grads]
        kept = [_again(g) for g in grads]
        if k % len(HOW) == STRUCK and a is None:
            b = self._struck(how, grads, 40 * (i + k))
        else:
            b = _outcome(how, ours, grads)
        for g, then in zip(grads, kept, strict=True):  # never written to
            assert g is None or bool((torch.as_tensor(g) == torch.as_tensor(then)).all())
        if isinstance(b, Struck) and not ours.changed(before):
            theirs.back(was)
            return
        if a is not None or (b is not None and not isinstance(b, Struck)):
            self._raised(a, b, before)
            theirs.back(was)
            return
        self._ran(how)
        # Keras' own step rounds after each operation, in the dtype of the variable.
        as_keras = how is _twice
        known = theirs.tensors() if as_keras else right.tensors()
        for (name, x), (_, y) in zip(known, ours.tensors(), strict=True):
            if x is not None and y is not None:
                self._near(name, x, y, as_keras)
        self._follow()

    def _struck(self, how: Any, grads: list[Any], place: int) -> BaseException | None:
        """A step into which an exception strikes."""
        raised: list[BaseException | None] = []
        instructions(lambda: raised.append(_outcome(how, self.ours, grads)), place, by_exception)
        return raised[0]

    def _raised(self, a: Any, b: Any, before: list[Any]) -> None:
        if a is None:
            assert isinstance(b, isostep.errors.ParameterError | isostep.GradientError), (a, b)
        assert b is not None, (a, b)
        changed = self.ours.changed(before)
        assert not changed, f"{b!r} changed {changed}"

    def _ran(self, how: Any) -> None:
        """Kernels run wherever nothing says otherwise."""
        if how is _twice:
            assert self.ours.optimizer.ran == ["Keras' own step"]
        array_code = self.ours.odd or self._accumulates
        if array_code or how in (_twice, _empty):
            return
        assert "native" in self.ours.optimizer.ran[0], self.ours.optimizer.ran

    def _near(self, name: str, right: Any, got: Any, as_keras: bool) -> None:
        x, y = right.detach().double(), got.detach().double()
        assert x.shape == y.shape, (name, x, y)
        if not got.dtype.is_floating_point:
            assert bool((x == y).all()), (name, x, y)
            return
        finite = x.isfinite() & (x.abs() <= torch.finfo(got.dtype).max)
        # An infinite variable decays to NaN by Keras' own formula, and stays infinite by torch's.
        assert bool((finite == y.isfinite()).all()), (name, x, y)
        scale = max(1.0, float(x[finite].abs().max())) if bool(finite.any()) else 1.0
        stored = EPS[got.dtype] * x.abs() + torch.finfo(got.dtype).tiny
        far = finite & ~((x - y).abs() <= stored + TOLERANCE * self._rounding(as_keras) * scale)
        assert not bool(far.any()), (name, x[far][:3], y[far][:3], scale)

    def _rounding(self, as_keras: bool) -> float:
        """Of the arithmetic of a step, or of what it has stored and reads again."""
        tensors = [t for _, t in self.ours.tensors() if t is not None and t.dtype in EPS]
        coarsest = max(EPS[t.dtype] for t in tensors)
        # Keras has norms, and the rates and decays of Adafactor, in float32.
        norms = self.ours.optimizer.clipnorm or self.ours.optimizer.global_clipnorm
        wide = all(v._value.dtype == torch.float64 for v in self.ours.stepped()) and not norms
        rounding = [EPS[torch.float64 if wide and self.rule != "Adafactor" else torch.float32]]
        if self._reread or as_keras:
            rounding.append(coarsest)
        if self.ours.odd:  # array code assigns, and Keras then casts to what it has for a dtype
            rounding += [EPS[getattr(torch, v.dtype)] for v in self.ours.variables]
        return max(rounding)

    @property
    def _reread(self) -> bool:
        """Whether a step reads again what it has stored: averages that overwrite variables, sums
        of gradients, factors, and variables that Keras constrains."""
        stored = self.options.keys() & {"use_ema", "gradient_accumulation_steps"}
        constrained = any(v.constraint is not None for v in self.ours.variables)
        return bool(stored) or constrained or self.rule == "Adafactor"

    def _alike(self, what: str) -> None:
        """Both worlds are the same, bit for bit."""
        for (name, x), (_, y) in zip(self.theirs.tensors(), self.ours.tensors(), strict=True):
            if x is not None and y is not None:
                assert same_bits(x, y), (what, name, x, y)

    def _follow(self) -> None:
        for (_, x), (_, y) in zip(self.theirs.tensors(), self.ours.tensors(), strict=True):
            if x is not None and y is not None:
                x.detach().copy_(y.detach())


class Reference(World):
    """Keras' own class in float64, stepped from where a world is.

    Args:
        world: before its step.
        how: the step.
        grads: of the step.
    """

    def __init__(self, world: World, how: Any, grads: Sequence[Any]) -> None:
        self.grads, self._seed, self._drawn = list(grads), 0, 0
        kind = getattr(keras.optimizers, type(world.optimizer).__name__)
        self.variables = [
            keras.Variable(v._value.detach().to(torch.float64, copy=True), dtype="float64")
            for v in world.variables
        ]
        for mine, theirs in zip(self.variables, world.variables, strict=True):
            mine.constraint = theirs.constraint
        self.optimizer = kind.from_config(world.optimizer.get_config())
        self.optimizer.build(self.variables)
        for mine, theirs in zip(self.optimizer._variables, world.kept(), strict=True):
            if theirs is not None:
                real = (
                    mine._value.is_floating_point()
                )  # else one that counts, or that nothing reads
                dtype = mine._value.dtype if real else theirs._value.dtype
                mine._value.data = theirs._value.detach().to(dtype, copy=True)
        wide = [g if g is None else torch.as_tensor(g).detach().double() for g in self.grads]
        _outcome(how, self, wide)


def _again(gradient: Any) -> Any:
    if gradient is None:
        return None
    return gradient.detach().clone() if isinstance(gradient, torch.Tensor) else gradient.copy()


def _outcome(act: Callable[..., Any], world: Any, *given: Any) -> BaseException | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act(world, *given)
    except (Exception, Struck) as error:
        return error
    return None
