"""An optimizer's parameters, accumulators and settings, bound to a stepper over their memory.

A binding is made whole for the parameters that have had gradients, and thrown away when something
that it stands on is another: a parameter was added, removed or replaced, memory has moved, a state
was loaded. What may change at any step (settings, which parameters have gradients, where these lie)
is looked at in every step.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from isostep import dialects
from isostep.engines.cohort import Runner
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError, ParameterError
from isostep.paddle.accumulators import Slots
from isostep.paddle.arrivals import Arrivals
from isostep.paddle.crew import CREW
from isostep.paddle.grad_mode import unrecorded
from isostep.paddle.gradients import Gradients
from isostep.paddle.hyper import Hyperparameters, rate_of
from isostep.paddle.memory import Watch
from isostep.paddle.own_step import Cause, of_power
from isostep.paddle.powers import Powers
from isostep.paddle.tensors import numpy_view
from isostep.report import Report
from isostep.rules import Rule
from isostep.stepper import Stepper

Tensor: Any = paddle.Tensor
_bump: Any = Tensor._bump_inplace_version


class Roster:
    """All parameters of an optimizer, in order, and the group of each.

    Args:
        params: the parameters.
        owners: their groups.
    """

    def __init__(self, params: list[Any], owners: list[int]) -> None:
        self.params, self.owners = params, owners

    def same(self, other: Roster) -> bool:
        """Whether the other has the same parameters in the same groups."""
        return _same(self.params, other.params) and self.owners == other.owners

    def once(self, grads: list[Any]) -> tuple[Roster, list[Any]]:
        """The parameters without those that came before, and their gradients."""
        first = {id(p): k for k, p in reversed(list(enumerate(self.params)))}
        places = [k for k, p in enumerate(self.params) if first[id(p)] == k]
        if len(places) == len(grads):
            return self, grads
        params, owners = [self.params[k] for k in places], [self.owners[k] for k in places]
        return Roster(params, owners), [grads[k] for k in places]

    def joined(self, other: Roster, order: Roster) -> Roster:
        """These parameters and those of another, in the order of a third as far as it goes."""
        mine: dict[int, tuple[Any, int]] = {}
        for roster in (other, self):
            for param, owner in zip(roster.params, roster.owners, strict=True):
                mine[id(param)] = param, owner
        first = [mine.pop(id(p)) for p in order.params if id(p) in mine]
        found = [*first, *mine.values()]
        return Roster([p for p, _ in found], [k for _, k in found])


class Binding:
    """A stepper over some parameters of one optimizer, by kernels.

    Args:
        optimizer: the optimizer. It has the accumulators of these parameters; all of these and of
            them are contiguous, and no two share memory.
        rule: its rule.
        counts: the steps that parameters have had, by name.
        roster: all parameters of the optimizer.
        own: those that are bound, and their groups.

    Attributes:
        own: the same.

    Raises:
        StateError: an accumulator is not what its parameter needs.
    """

    def __init__(
        self, optimizer: Any, rule: Rule, counts: dict[str, int], roster: Roster, own: Roster
    ) -> None:
        self._optimizer, self._roster, self.own = optimizer, roster, own
        params = own.params
        self._names = [param.name for param in params]
        self._places = {id(param): k for k, param in enumerate(params)}
        self._options = _options(optimizer)
        self._hyper = Hyperparameters(optimizer, rule, optimizer.spelling)
        self._raw = self._hyper.raw(params, own.owners)
        groups, membership, self._factors = self._hyper.groups(self._raw)
        self._apart = self._hyper.foreign(self._raw)
        by_name = dict(zip(self._names, params, strict=True))
        slots = Slots(optimizer, by_name, optimizer.spelling.slots)
        dialect, spelling = dialects.get("paddle"), optimizer.spelling
        self.stepper = made = Stepper(
            rule,
            dialect,
            spelling,
            groups,
            optimizer.options(),
            "native",
            slots,
            crew=CREW,
        )
        for param, group in zip(params, membership, strict=True):
            made.add(param.name, numpy_view(param), group, counts.get(param.name, 0))
        self._powers = Powers(optimizer, params, self._values())
        tensors = [*params, *slots.tensors, *self._powers.tensors]
        self._watch = Watch(tensors, _held(optimizer))
        self._filled = np.array([leaf.array.size > 0 for leaf in made.leaves], dtype=bool)
        self._grads = np.zeros(len(params), dtype=np.int64)
        self._asked = _Asked([], [], np.zeros(0, dtype=np.intp), Arrivals([]))

    # -- whether it still fits -------------------------------------------------------------------

    def same(self, roster: Roster) -> bool:
        """Follow what was set since the last step, and say whether all that this stands on is as
        it was.

        Args:
            roster: all parameters of the optimizer.
        """
        if _options(self._optimizer) != self._options or not self._roster.same(roster):
            return False
        return self._refresh() and self._watch.same(_held(self._optimizer))

    def has(self, own: Roster) -> bool:
        """Whether these parameters are bound, each once and in these groups; their places are
        kept."""
        asked = self._asked
        if not _same(own.params, asked.params):
            places = [self._places.get(id(param), -1) for param in own.params]
            if -1 in places or len(set(places)) < len(places):
                return False
            self._asked = asked = _Asked(
                own.params,
                [self.own.owners[k] for k in places],
                np.array(places, dtype=np.intp),
                Arrivals(own.params),
            )
        return own.owners == asked.owners

    # -- steps -----------------------------------------------------------------------------------

    def powers_of_no_count(self) -> Cause | None:
        """Count as Paddle's powers say; if they are those of no count, the step is Paddle's own."""
        place = self._powers.follow(self.stepper.steps)
        return None if place is None else of_power(self.own.params[place])

    def step(self, own: Roster, grads: list[Any]) -> Report | None:
        """One step of parameters that are bound, while all is the `same`.

        Args:
            own: the parameters that are stepped.
            grads: their gradients.

        Raises:
            GradientError: a gradient has another shape than its parameter, or an unknown dtype.
        """
        dtypes = None if self._apart else self._usual(grads)
        if dtypes is not None:
            return self._run(dtypes, [], [])
        pairs: Sequence[tuple[Any, Any]] = list(zip(own.params, grads, strict=True))
        if self._apart:
            pairs = unrecorded(self._optimizer.prepared)(pairs, self._hyper)
            if not self._watch.same(_held(self._optimizer)):
                raise ParameterError(
                    "the optimizer's grad_clip has moved a parameter or an accumulator in memory: "
                    "a step cannot go on from there; nothing was changed"
                )
        given = {self._places[id(param)]: grad for param, grad in pairs}
        found = Gradients(self.stepper, self.own.params, given, self._lazily)
        self._grads = found.addresses
        return self._run(found.dtypes, found.rows, found.empty)

    def _usual(self, grads: list[Any]) -> tuple[str | None, ...] | None:
        """The dtype of each gradient, if kernels take all of them where they lie."""
        asked = self._asked
        found = asked.arrivals.look(grads)
        if found is None:
            return None
        where, names = found
        if names != asked.known[0]:
            dtypes: list[str | None] = [None] * len(self._names)
            for k, name in zip(asked.places.tolist(), names, strict=True):
                dtypes[k] = name
            asked.known = names, tuple(dtypes)  # in one go: an exception may come between two
        self._grads = np.zeros(len(self._names), dtype=np.int64)
        self._grads[asked.places] = where
        return asked.known[1]

    def _lazily(self, place: int) -> bool:
        self._optimizer.check_rows()
        return self._optimizer.lazy_in(self.own.owners[place])

    def _run(
        self, dtypes: tuple[str | None, ...], rows: list[Runner], empty: list[int]
    ) -> Report | None:
        self._check_memory(dtypes)
        scale = self._optimizer.loss_scale
        return self.stepper.step(dtypes, self._bind, scale, rows, empty, self._settle)

    def _check_memory(self, dtypes: tuple[str | None, ...]) -> None:
        """Refuse gradients without memory."""
        if self._grads.all():
            return
        given = [dtype is not None for dtype in dtypes]
        missing = (self._grads == 0) & self._filled & given
        if missing.any():
            name = self._names[int(missing.argmax())]
            raise GradientError(f"the gradient of {name!r} has no memory; nothing was changed")

    def _bind(self, runner: Runner) -> None:
        assert isinstance(runner, NativeRunner)
        runner.refresh("grad", self._grads[runner.cohort.members])

    def _settle(self) -> None:
        """Bring what Paddle keeps up to date with the step."""
        self._powers.write(self.stepper.steps)
        deque(map(_bump, self._asked.params), maxlen=0)  # kernels write past autograd's eyes

    # -- settings --------------------------------------------------------------------------------

    def _values(self) -> list[dict[str, Any]]:
        """The hyperparameters of each parameter."""
        return [self.stepper.groups[leaf.group].values for leaf in self.stepper.leaves]

    def _refresh(self) -> bool:
        """Follow what was set since the last step; False if a parameter has another name. That
        calls functions of the user."""
        raw = self._hyper.raw(self.own.params, self.own.owners)
        if raw != self._raw:
            if raw[-1] != self._raw[-1]:
                return False
            groups, membership, factors = self._hyper.groups(raw)
            self._factors = factors
            self.stepper.regroup(groups, membership)
            self._powers.set_betas(self._values())
            self._apart = self._hyper.foreign(raw)
            self._raw = raw  # at last: what an exception has stopped is done when asked again
        rate = self._optimizer.rate()
        for group, factor in zip(self.stepper.groups, self._factors, strict=True):
            group.values["lr"] = rate_of(rate, factor)
        return True

    # -- looking in ------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """The steps that each parameter has had, by name."""
        return dict(zip(self._names, self.stepper.steps.tolist(), strict=True))


@dataclass
class _Asked:
    """The parameters of a step, which mostly are those of the step before.

    Args:
        params: the parameters.
        owners: their groups.
        places: where they stand in the binding.
        arrivals: finds their gradients.
        known: the dtypes of these, and for each bound parameter the dtype of its gradient.
    """

    params: list[Any]
    owners: list[int]
    places: NDArray[np.intp]
    arrivals: Arrivals
    known: tuple[list[str], tuple[str | None, ...]] = ([], ())


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two lists have the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _held(optimizer: Any) -> list[Any]:
    """The dicts in which an optimizer finds what it keeps."""
    kept = optimizer._accumulators
    return [kept, *kept.values(), optimizer._master_weights]


def _options(optimizer: Any) -> Any:
    """What decides how a binding is made, and is not read anew in each step."""
    return optimizer.wide, optimizer.loss_scale != 1.0, optimizer._multi_precision, optimizer._name
