"""What every front-end stands on: parameters, groups and options in, steps out.

A stepper knows no framework. It sorts parameters into cohorts that share a kernel, allocates their
slots, folds the step count into coefficients and has an engine run the passes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from isostep import commit
from isostep import recipe as recipes
from isostep.coefficients import Folded
from isostep.compile.arrays import Array, compute_dtype, name_of
from isostep.dialects.base import Dialect, Spelling
from isostep.engines import native
from isostep.engines.array import ArrayNamespace, ArrayRunner, NumpyNamespace
from isostep.engines.cohort import Cohort, Floats, Outcome, Ranks, Runner, Shared, execute
from isostep.engines.headers import addresses
from isostep.engines.leaf import AnyArray, Leaf
from isostep.engines.native import NativeRunner
from isostep.engines.selection import Cohorts, Kind, Selection, kind_of
from isostep.engines.threads import HOST, Crew
from isostep.errors import GradientError, HyperparameterError, PartError
from isostep.plan import Plan, PlanEntry
from isostep.rates import LR_RATIO
from isostep.recipe import EMA, Clip, Recipe
from isostep.report import SUMS, GroupReport, Report
from isostep.rules.base import Domain, Hyperparameter, Rule, is_on
from isostep.tracing import trace

Engine = Literal["native", "array"]
DecayKind = Literal["coupled", "decoupled"]
NUMPY = NumpyNamespace()
DTYPES = ("float64", "float32", "float16", "bfloat16")
LOW_PRECISION = DTYPES[2:]
COMPLEX = ("complex128", "complex64")


@dataclass(frozen=True)
class Options:
    """What a step does besides the rule; the same for all parameters of an optimizer.

    Args:
        clip: bound of the gradients, or None.
        ema: moving average of the parameters, or None.
        maximize: ascend instead of descend.
        decay: where weight decay acts, or None for what the dialect says.
        nonfinite: what happens if a gradient has an infinite or NaN element: `"propagate"` it,
            `"skip"` the step or `"raise"` an error; the last two change no bit.
        unscale: gradients are divided by a loss scale that is given with each step.
        master_weights: keep a float32 copy of each float16 and bfloat16 parameter, and step that.
        state_dtype: dtype of the element-wise slots, for all or by slot name; default: float64 for
            float64 parameters, else float32. `"param"`: all slots in the parameter's own dtype.
        report: measure norms and non-finite counts in each step.
    """

    clip: Clip | None = None
    ema: EMA | None = None
    maximize: bool = False
    decay: DecayKind | None = None
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"
    unscale: bool = False
    master_weights: bool = False
    state_dtype: str | dict[str, str] | None = None
    report: bool = False


@dataclass
class HyperGroup:
    """The hyperparameters of some parameters.

    Args:
        name: what people call the group.
        values: the rule's hyperparameters by canonical name; values may be schedules.
        lr_ratio: factor on the learning rate among them; may be a schedule.
        maximize, decay, clip: what differs from the options of the optimizer, or None.
        unclipped: its gradients are not clipped, and no part of a norm.
        clip_scope: its global norm is that of all groups with this word.
    """

    name: str
    values: dict[str, Any]
    lr_ratio: Any = 1.0
    maximize: bool | None = None
    decay: DecayKind | None = None
    clip: Clip | None = None
    unclipped: bool = False
    clip_scope: str = ""

    @property
    def shown(self) -> dict[str, Any]:
        """The values as the plan shows them."""
        return self.values if self.lr_ratio == 1.0 else {**self.values, "lr_ratio": self.lr_ratio}

    def at(self, t: int, rule: Rule) -> SimpleNamespace:
        """The values for the step that follows `t` completed ones.

        Raises:
            HyperparameterError: a schedule has left the range of its hyperparameter, or the
                learning rate is not finite.
        """
        h = SimpleNamespace(**self.values)
        for name, value in self.values.items():
            if callable(value):
                setattr(h, name, rule.hyperparameter(name).check(value(t)))
        h.lr *= read(self.lr_ratio, t, LR_RATIO)
        if not math.isfinite(h.lr):
            raise HyperparameterError(
                f"the learning rate of {self.name!r} is {h.lr} after {t} steps: it must be finite"
            )
        return h


def read(value: Any, t: int, declared: Hyperparameter) -> Any:
    """A number, or what a schedule gives after `t` completed steps.

    Raises:
        HyperparameterError: a schedule has left the range of what it is declared for.
    """
    return declared.check(value(t)) if callable(value) else value


class Allocate(Protocol):
    """Makes an array that is kept for a parameter.

    It gets the leaf, the array's name, what it has one value per, its dtype, and a number to fill
    it with or an array to copy; it returns the array flat, in the leaf's order of memory.
    """

    def __call__(
        self, leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
    ) -> AnyArray: ...


def new_array(
    leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
) -> AnyArray:
    """The `Allocate` of front-ends whose state is NumPy arrays."""
    array = np.empty(math.prod(leaf.slot_shape(per)), dtype=dtype)
    array[...] = initial
    return array


@dataclass(frozen=True)
class _Taken:
    """The parameters that a stepper has taken in.

    Args:
        leaves: the parameters.
        steps: how many steps each has had.
        groups: the group of each.
    """

    leaves: list[Leaf]
    steps: NDArray[np.int64]
    groups: NDArray[np.int64]

    def plus(self, leaf: Leaf, steps: int) -> _Taken:
        """These and one more."""
        return _Taken(
            [*self.leaves, leaf],
            np.append(self.steps, steps),
            np.append(self.groups, leaf.group),
        )


class Stepper:
    """Steps a list of parameters.

    Args:
        rule: the mathematics.
        dialect, spelling: how the framework arranges it.
        groups: hyperparameters.
        options: what a step does besides the rule.
        engine: what runs the passes.
        allocate: makes the arrays that are kept.
        namespace: whose arrays the array engine works on.
        crew: the threads that kernels run on.
    """

    def __init__(
        self,
        rule: Rule,
        dialect: Dialect,
        spelling: Spelling,
        groups: Sequence[HyperGroup],
        options: Options,
        engine: Engine,
        allocate: Allocate = new_array,
        namespace: ArrayNamespace = NUMPY,
        crew: Crew = HOST,
    ) -> None:
        self.rule, self.dialect, self.spelling = rule, dialect, spelling
        self.groups, self.options, self.engine = list(groups), options, engine
        self.iteration = 0
        self.skipped = 0
        self.last: list[Runner] = []
        self.ranks: Ranks | None = None
        """The processes that step the other parameters of the model, if this has only some."""
        self._taken = _Taken([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        self._codes: list[Any] | None = None
        self._recipes: dict[Any, Recipe] = {}
        self._allocate, self._namespace, self.crew = allocate, namespace, crew
        self._cohorts = self._new_cohorts()

    def add(self, name: str, array: AnyArray, group: int, steps: int = 0, own: Any = None) -> Leaf:
        """Take a parameter in, with the arrays that are kept for it.

        Args:
            name: the parameter's name.
            array: the parameter, which steps will update in place.
            group: index of its group.
            steps: how many steps it has had.
            own: what the array engine writes to, if that is not a NumPy array; `array` then has
                its shape and dtype only.
        """
        axes = self.rule.factored_axes(array.shape, self._static(group))
        leaf = Leaf(name, array, group, axes, own)
        self._fill(leaf)
        self._codes = None
        # In one assignment: an exception finds the parameter taken in, or not.
        self._taken = self._taken.plus(leaf, steps)
        return leaf

    @property
    def leaves(self) -> list[Leaf]:
        """The parameters."""
        return self._taken.leaves

    @property
    def steps(self) -> NDArray[np.int64]:
        """How many steps each parameter has had."""
        return self._taken.steps

    def refresh(self) -> None:
        """Look again at what selects code, after a hyperparameter of a group has changed."""
        self._recipes = {}
        for leaf in self.leaves:
            self._fill(leaf)
        self._cohorts = self._new_cohorts()

    def rebind(self, places: Iterable[int]) -> None:
        """Look where parameters and what is kept for them lie, which may be elsewhere.

        Args:
            places: the parameters that can be stepped; others must not have gradients.
        """
        for place in places:
            self.leaves[place].bind()
        self._cohorts = self._new_cohorts()

    def regroup(self, groups: Sequence[HyperGroup], membership: Sequence[int]) -> None:
        """Other groups, or other hyperparameters in them.

        Args:
            groups: all groups.
            membership: the group of each leaf.
        """
        if self._codes is None:
            self._codes = [self._code(self.groups[leaf.group]) for leaf in self.leaves]
        self.groups, self._recipes = list(groups), {}
        for leaf, group in zip(self.leaves, membership, strict=True):
            leaf.group = group
        self._taken = replace(self._taken, groups=np.array(membership, dtype=np.int64))
        codes = [self._code(self.groups[leaf.group]) for leaf in self.leaves]
        if codes != self._codes:
            self.refresh()
        self._codes = codes  # at last: what an exception has stopped is done when asked again

    # -- what is decided once --------------------------------------------------------------------

    def _code(self, group: HyperGroup) -> Any:
        """What of a group selects code."""
        switches = self.rule.switches(SimpleNamespace(**group.values))
        clip = self.clip_of(group)
        how = (group.maximize, self.decay_of(group), clip and clip.kind, group.clip_scope)
        return switches, how, self._decaying()

    def _static(self, group: int) -> SimpleNamespace:
        return SimpleNamespace(**self.groups[group].values)

    def recipe(self, leaf: Leaf) -> Recipe:
        """The static side of this parameter's step."""
        factored, complex = leaf.factored_axes is not None, name_of(leaf.dtype) in COMPLEX
        key = leaf.group, factored, "model" in leaf.arrays, complex
        if key not in self._recipes:
            self._recipes[key] = self._recipe(*key)
        return self._recipes[key]

    def _recipe(self, number: int, factored: bool, master: bool, complex: bool) -> Recipe:
        o, ema, group = self.options, self.options.ema, self.groups[number]
        clip = self.clip_of(group)
        switches = dict(self.rule.switches(self._static(number)))
        switches["factored"] = factored
        return Recipe(
            rule=self.rule,
            switches=tuple(sorted(switches.items())),
            unscale=o.unscale,
            nonfinite=o.nonfinite,
            clip=clip.kind if clip else None,
            clip_scope=group.clip_scope,
            inf_norm_is_nan=clip is not None and clip.kind in self.dialect.inf_norm_is_nan,
            maximize=o.maximize if group.maximize is None else group.maximize,
            decay=self.decay_of(group) if any(self._decaying()) else None,
            decay_mixed=len(self._decaying()) > 1,
            decay_first=self.spelling.decay_first,
            master=master,
            complex=complex,
            average=ema is not None,
            overwrite=ema is not None and ema.overwrite_every is not None,
            report=o.report,
        )

    def decay_of(self, group: HyperGroup) -> DecayKind:
        """Where weight decay acts in this group."""
        return group.decay or self.options.decay or self.spelling.decay

    def clip_of(self, group: HyperGroup) -> Clip | None:
        """What bounds the gradients of this group."""
        return None if group.unclipped else group.clip or self.options.clip

    def _decaying(self) -> set[bool]:
        """Whether groups decay: one group's decay puts it into everyone's kernel."""
        return {is_on(group.values.get("weight_decay", 0.0)) for group in self.groups}

    def _slot_dtype(self, slot: str, per: Domain, leaf: Leaf) -> np.dtype[Any]:
        asked = self.options.state_dtype
        if isinstance(asked, dict):
            asked = asked.get(slot)
        if asked == "param":
            return leaf.dtype
        # Factors are few, and the next pass reads them: they stay in the dtype of the arithmetic.
        if asked is not None and per == "element":
            return as_dtype(asked)
        return np.dtype(arithmetic(name_of(leaf.dtype)))

    def _fill(self, leaf: Leaf) -> None:
        """Bind the parameter and make what is kept for it, as far as it is not there."""
        arrays, own = leaf.arrays, leaf.own
        wide = np.dtype(arithmetic(name_of(leaf.dtype)))
        if "param" not in arrays:
            arrays["param"] = own
            if self.options.master_weights and name_of(leaf.dtype) in LOW_PRECISION:
                arrays["model"] = own
                arrays["param"] = self._allocate(leaf, "master", "element", wide, own)
        h = self._static(leaf.group)
        for slot in self.rule.active_slots(self.recipe(leaf).o):
            if slot.name not in arrays:
                known = isinstance(slot.initial, str)
                initial = getattr(h, str(slot.initial)) if known else slot.initial
                dtype = self._slot_dtype(slot.name, slot.per, leaf)
                arrays[slot.name] = self._allocate(leaf, slot.name, slot.per, dtype, initial)
        if self.options.ema is not None and "average" not in arrays:
            arrays["average"] = self._allocate(leaf, "average", "element", wide, arrays["param"])

    # -- steps -----------------------------------------------------------------------------------

    def prepare(self, grad_dtypes: tuple[str | None, ...]) -> Selection:
        """The cohorts for gradients of these dtypes, None where there is no gradient."""
        return self._cohorts.select(self.leaves, grad_dtypes)

    def own_cohorts(self, grad_dtypes: tuple[str | None, ...]) -> Selection:
        """As `prepare`, with tables that nobody else has, not even another step."""
        return self._cohorts.select_own(self.leaves, grad_dtypes)

    def _new_cohorts(self) -> Cohorts:
        # They are the stepper's: did they hold it, its memory would wait for the garbage collector.
        me = weakref.proxy(self)
        return Cohorts(
            lambda leaf: me._kinds(leaf),
            lambda *of: me._runner(*of),
            lambda cohorts: me._compile(cohorts),
        )

    def _compile(self, cohorts: list[Cohort]) -> None:
        if self.engine == "native":
            native.prepare(cohorts, self.crew)

    def _kinds(self, leaf: Leaf) -> tuple[Kind | None, Kind | None]:
        """What decides about the cohorts of a parameter with a gradient, and without."""
        recipe = self.recipe(leaf)
        idle = kind_of(leaf, replace(recipe, idle=True)) if self.averages_idle else None
        return kind_of(leaf, recipe), idle

    @property
    def averages_idle(self) -> bool:
        """Whether parameters without gradient are averaged as well."""
        return self.options.ema is not None and self.dialect.averaging.without_gradient

    def _runner(self, cohort: Cohort, leaves: list[Leaf]) -> Runner:
        if self.engine == "array":
            return ArrayRunner(cohort, [dict(leaf.arrays) for leaf in leaves], self._namespace)
        names = [a.name for a in cohort.arrays if a.name != "grad"]
        found = addresses([leaf.arrays[name] for leaf in leaves for name in names])
        table = np.zeros((len(leaves), len(cohort.arrays)), dtype=np.int64)
        table[:, [cohort.column(name) for name in names]] = found.reshape(len(leaves), -1)
        return NativeRunner(cohort, table, self.crew)

    def step(
        self,
        grad_dtypes: tuple[str | None, ...],
        bind: Callable[[Runner], None],
        loss_scale: float = 1.0,
        rows: Sequence[Runner] = (),
        empty: Sequence[int] = (),
        settle: Callable[[], None] | None = None,
    ) -> Report | None:
        """One step of all parameters that have a gradient.

        An exception from outside (an interrupt) leaves it done or not begun, never in between.

        Args:
            grad_dtypes: the dtype of each gradient, None where there is none.
            bind: hands the gradients of a cohort to its runner.
            loss_scale: what gradients are divided by.
            rows: cohorts of the rows of one parameter each, for sparse gradients.
            empty: places of the parameters whose sparse gradient has no rows: a step all the same.
            settle: brings the framework's own state up to date with `steps` and `iteration`; part
                of the step, so it must do no harm when it is called twice.

        Returns:
            The report, if one was asked for.

        Raises:
            GradientError: a gradient has a non-finite element and the policy is `"raise"`.
            PartError: another process takes no part in the step.
        """
        ready = self.prepare(grad_dtypes)
        for runner in ready.runners:
            bind(runner)
        for leaf in ready.staged:
            leaf.bring_in()
        self.last = runners = [*ready.runners, *rows]
        writes = self._writes(ready, rows, empty, loss_scale, settle)
        outcome = commit.run(writes)
        if outcome.missed:
            raise PartError(
                f"step {self.iteration + 1}: another process that has a part of the model did not "
                f"take its part, by an error of its own; nothing was changed"
            )
        if outcome.blocked and self.options.nonfinite == "raise":
            self._refuse(runners, outcome)
        return self._report(runners, outcome) if self.options.report else None

    def _writes(
        self,
        ready: Selection,
        rows: Sequence[Runner],
        empty: Sequence[int],
        loss_scale: float,
        settle: Callable[[], None] | None,
    ) -> Callable[[commit.Progress], Outcome]:
        """The part of a step that writes, for `commit.run`; what it counts to is fixed now."""
        runners = [*ready.runners, *rows]
        shared = None if self.ranks is None else Shared(self._shared(runners), self.ranks)
        coefficients = self._coefficients(runners, loss_scale)
        idle = self._coefficients(ready.idle, loss_scale) if ready.idle else []
        counts = self.steps + ready.counted
        if rows or empty:
            counts[[*(int(row.cohort.members[0]) for row in rows), *empty]] += 1
        iteration, skipped = self.iteration + 1, self.skipped + 1

        def write(progress: commit.Progress) -> Outcome:
            outcome = execute(runners, coefficients, progress, shared)
            if outcome.stopped:
                skips = self.options.nonfinite == "skip" and not outcome.missed
                self.skipped = skipped if skips else self.skipped
                return outcome
            execute(ready.idle, idle, progress)
            for leaf in ready.staged:
                leaf.take_back()
            self.steps[:] = counts
            self.iteration = iteration
            if settle is not None:
                settle()
            return outcome

        return write

    def _shared(self, runners: Sequence[Runner]) -> list[str]:
        """The names of the sums over all tensors, as options say, whatever tensors there are."""
        clips = [(self.clip_of(group), group.clip_scope) for group in self.groups]
        scopes = {scope for clip, scope in clips if clip is not None and clip.kind == "global_norm"}
        names = [] if self.options.nonfinite == "propagate" else [recipes.NONFINITE_SUM]
        names += map(recipes.norm_sum, sorted(scopes))
        for runner in runners:
            for node in chain.from_iterable(runner.cohort.schedule.step_sums):
                if node.name not in names:
                    raise HyperparameterError(
                        f"{self.rule.name} sums over all tensors of a step: that has no kernel "
                        f"where other processes have some of them"
                    )
        return names

    def _coefficients(self, runners: Sequence[Runner], loss_scale: float) -> list[dict[str, Any]]:
        """For each cohort its coefficients: numbers, or arrays over its tensors where groups or
        step counts differ."""
        groups, folded = self._taken.groups, Folded(partial(self._fold, loss_scale))
        if self.dialect.steps_per == "parameter":
            counts = self.steps
            alike = len(self.groups) == 1 and bool((counts == counts[:1]).all())
        else:
            counts = np.broadcast_to(self.iteration, len(self.leaves))
            alike = len(self.groups) == 1
        found: list[dict[str, Any]] = []
        for runner in runners:
            members, dtype = runner.cohort.members, _model_dtype(runner.cohort)
            if alike:
                found.append(folded.alone(0, int(counts[0]) + 1, dtype))
            else:
                found.append(folded.of(groups[members], counts[members] + 1, dtype))
        return found

    def _fold(self, loss_scale: float, xp: Any, group: int, t: Any, dtype: str) -> dict[str, Any]:
        """The coefficients of one group; see `coefficients.Fold`."""
        h = self.groups[group].at(self.iteration, self.rule)
        for name in self.spelling.none_is_machine_epsilon:
            if getattr(h, name) is None:
                setattr(h, name, machine_epsilon(dtype))
        return recipes.coefficients(
            xp,
            t,
            self.iteration + 1,
            h,
            rule=self.rule,
            clip=self.clip_of(self.groups[group]),
            clip_eps=self.dialect.clip_eps,
            ema=self.options.ema,
            decay=self.decay_of(self.groups[group]),
            decay_times_lr=self.spelling.decay_times_lr,
            loss_scale=loss_scale,
            read=lambda value, declared: read(value, self.iteration, declared),
        )

    def _refuse(self, runners: Sequence[Runner], outcome: Outcome) -> NoReturn:
        counts = self._gather(runners, outcome, "nonfinite")
        bad = {self.leaves[k].name: int(n) for k, n in enumerate(counts) if n}
        named = ", ".join(f"{name!r} ({n})" for name, n in list(bad.items())[:5])
        named = named or "parameters of other processes"
        raise GradientError(
            f"step {self.iteration + 1}: non-finite gradient elements in {named}"
            f"{' and others' if len(bad) > 5 else ''}; no parameter was changed "
            f'(nonfinite="skip" skips such steps, "propagate" lets them through)'
        )

    def _gather(self, runners: Sequence[Runner], outcome: Outcome, name: str) -> Floats:
        values = np.zeros(len(self.leaves))
        for runner, found in zip(runners, outcome.statistics, strict=True):
            np.add.at(values, runner.cohort.members, found.get(name, 0.0))
        return values

    def _report(self, runners: Sequence[Runner], outcome: Outcome) -> Report:
        sums = np.stack([self._gather(runners, outcome, name) for name in SUMS], axis=1)
        groups: list[GroupReport] = []
        for index, group in enumerate(self.groups):
            inside = self._taken.groups == index
            if inside.any():
                groups.append(GroupReport.of(group.name, sums[inside].sum(axis=0)))
        return Report(self.iteration, bool(outcome.blocked), groups)

    # -- looking in ------------------------------------------------------------------------------

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel: engine, layout and dtype."""
        return [f"{r.engine} {r.cohort.layout} {r.cohort.compute_dtype}" for r in self.last]

    @property
    def source(self) -> str:
        """The source of what ran in the last step."""
        return "\n\n".join(r.source for r in self.last)

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots, averages and master copies."""
        return sum(a.nbytes for leaf in self.leaves for a in self.kept(leaf).values())

    def kept(self, leaf: Leaf) -> dict[str, AnyArray]:
        """The arrays that are kept for a parameter: slots, average, master; dense."""
        low = "model" in leaf.arrays
        kept = {n: a for n, a in leaf.arrays.items() if n not in ("param", "model")}
        return kept | ({"master": leaf.arrays["param"]} if low else {})

    def per(self, slot: str) -> Any:
        """The domain of a kept array: `"element"`, `"row"` or `"column"`."""
        return next((s.per for s in self.rule.slots if s.name == slot), "element")

    def plan(self, grad_dtypes: tuple[str | None, ...]) -> Plan:
        """What a step with gradients of these dtypes would do; nothing is compiled."""
        entries: list[PlanEntry] = []
        for leaf, grad in zip(self.leaves, grad_dtypes, strict=True):
            kept = self.kept(leaf)
            schedule = trace(self.recipe(leaf), matrices=leaf.matrices)
            sizes = {"grad": dtype_of(grad or "float32").itemsize * leaf.size}
            sizes |= {name: a.nbytes for name, a in leaf.arrays.items()}
            moved = sum(sizes[name] for step in schedule.passes for name in step.moves)
            passes = len(schedule.passes)
            named = [Array(name, a.dtype.name) for name, a in leaf.arrays.items()]
            compute = compute_dtype([Array("grad", grad or "float32"), *named])
            entries.append(
                PlanEntry(
                    leaf.name,
                    leaf.shape,
                    name_of(leaf.dtype),
                    self.groups[leaf.group].name,
                    {n: (leaf.slot_shape(self.per(n)), a.dtype.name) for n, a in kept.items()},
                    sum(a.nbytes for a in kept.values()),
                    moved + (4 * leaf.dtype.itemsize * leaf.size if leaf.staged else 0),
                    f"{self.engine}, {leaf.layout}, {passes} pass{'es' * (passes > 1)}, {compute}",
                    leaf.staged,
                )
            )
        threads = self.crew.told if self.engine == "native" else ""
        return Plan(entries, {g.name: g.shown for g in self.groups}, threads)


def _model_dtype(cohort: Cohort) -> str:
    """The dtype of the parameters as the model has them, not of their float32 masters."""
    dtypes = {a.name: a.dtype for a in cohort.arrays}
    return dtypes.get("model", dtypes["param"])


def arithmetic(dtype: str) -> str:
    """The dtype that parameters of a dtype are stepped in."""
    return dtype if dtype in ("float64", *COMPLEX) else "float32"


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of parameters and gradients, which may be complex where slots that are asked
    for may not; see `as_dtype`."""
    return np.dtype(name) if name in COMPLEX else as_dtype(name)


def machine_epsilon(dtype: str) -> float:
    """The distance from 1 to the next larger number of a floating dtype."""
    return {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[
        dtype
    ]


def as_dtype(name: Any) -> np.dtype[Any]:
    """The NumPy dtype of a name; `bfloat16` comes from ml_dtypes.

    Raises:
        ValueError: not one of float64, float32, float16, bfloat16.
    """
    if str(name) == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)
    if dtype.name not in DTYPES:
        raise ValueError(f"dtype {dtype.name!r} is not supported: use one of {', '.join(DTYPES)}")
    return dtype
