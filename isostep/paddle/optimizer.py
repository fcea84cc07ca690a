"""The step that replaces Paddle's: one fused pass over all parameters of an optimizer.

`FusedStep` goes before a class of paddle.optimizer. Constructor, errors, groups and accumulators
stay Paddle's own; only the arithmetic, and the loop around it, is isostep's.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from itertools import chain, compress, repeat
from operator import attrgetter, is_not
from typing import Any, ClassVar

import paddle
from paddle.base import core, framework
from paddle.jit.sot import psdb
from paddle.jit.sot.utils.utils import no_eval_frame
from paddle.optimizer.lr import LRScheduler

from isostep import commit, dialects, parts, rules
from isostep.dialects import Spelling
from isostep.dialects.paddle import STEPPED
from isostep.errors import HyperparameterError, ParameterError
from isostep.extension import Cause
from isostep.lock import Lock, locked, under
from isostep.paddle import accumulators, own_step
from isostep.paddle.arrays import Arrays
from isostep.paddle.binding import Binding, Roster
from isostep.paddle.grad_mode import recording, unrecorded
from isostep.paddle.gradients import check_fit, widened
from isostep.paddle.hyper import Hyperparameters, attribute
from isostep.paddle.options import Extras, checked
from isostep.paddle.planning import plan
from isostep.paddle.program import ArrayStep
from isostep.paddle.state import Saved, keyed, load, named
from isostep.paddle.tensors import check_names, check_steppable
from isostep.plan import Plan
from isostep.report import Report
from isostep.stepper import Engine, Options

WIDE = ("Adam", "AdamW", "Adafactor")
"""The rules whose accumulators are float32 also beside a parameter of low precision."""
UNDECAYED = ("Adam",)
"""The rules whose classes in Paddle refuse weight decay of a parameter with a sparse gradient."""
Pairs = Sequence[tuple[Any, Any]]
Tensor: Any = paddle.Tensor
_is_there = partial(is_not, None)
_is_initialized, _stops = Tensor._is_initialized, attrgetter("stop_gradient")
Framework: Any = object
"""Stands for the class of Paddle that follows `FusedStep` in the bases."""


class FusedStep(Framework):
    """The fused step, for a class of Paddle that follows it in the bases."""

    rule: ClassVar[str]
    spelling: ClassVar[Spelling]
    paddle_signature: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_step.check_subclass(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {k: kwargs.pop(k) for k in list(kwargs) if k in Extras.__dataclass_fields__}
        self._extras = checked(given)
        self._lock = Lock()
        self._binding: Binding | None = None
        self._counts: dict[str, int] = {}
        self._iteration, self._skipped = 0, 0
        self._report: Report | None = None
        self.ran_without_kernels = ""
        self._leaving = Lock()
        arguments = type(self).paddle_signature.bind(*args, **kwargs).arguments
        ratio = arguments.pop("lr_ratio", None)
        if ratio is not None and not callable(ratio):
            raise TypeError(
                f"lr_ratio must be a function of the parameter, not {type(ratio).__name__}"
            )
        arguments["parameters"], self._structured = named(arguments.get("parameters"))
        super().__init__(**arguments)
        if ratio is not None:  # Paddle itself refuses it on CPUs
            self._lr_ratio = ratio
        cause = own_step.cause(self, self.all_parameters())
        if cause is not None:
            self._refuse_extras(cause)
        if paddle.in_dynamic_mode():
            self._check()

    def _check(self) -> None:
        """Refuse settings that no step could be taken with, now and not at the first step."""
        if self.decays is not None and not callable(self.decays):
            raise TypeError("apply_decay_param_fun must be a function of a parameter's name")
        hyper = Hyperparameters(self, rules.get(self.rule), self.spelling)
        params = self.all_parameters()
        hyper.groups(hyper.raw(params, self.owners([(p, None) for p in params])))

    def _refuse_extras(self, cause: Cause) -> None:
        used = self._extras.used() + ["lr_ratio"] * (self.lr_ratio is not None)
        own_step.refuse(self, cause, used)

    # -- what a step stands on -------------------------------------------------------------------

    @property
    def loss_scale(self) -> float:
        """What gradients are divided by: Momentum's `rescale_grad`, the other way round."""
        rescale = getattr(self, "_rescale_grad", 1.0)
        return 1.0 / rescale if rescale else float("inf")

    @property
    def grouped(self) -> bool:
        """Whether there are parameter groups."""
        listed = self._listed
        return bool(listed) and isinstance(listed[0], dict)

    @property
    def _listed(self) -> Any:
        """What the step of Paddle's class goes through."""
        return getattr(self, STEPPED.get(self.spelling.class_name, "_param_groups"))

    @property
    def lr_ratio(self) -> Callable[[Any], float] | None:
        """The user's factor on the learning rate, by parameter."""
        return getattr(self, "_lr_ratio", None)

    @property
    def decays(self) -> Callable[[str], bool] | None:
        """The user's choice of what decays, by name of the parameter."""
        return getattr(self, "_apply_decay_param_fun", None)

    @property
    def engine(self) -> Engine:
        """What is asked to run steps in dynamic graphs."""
        return self._extras.engine

    @property
    def clips_per_group(self) -> bool:
        """Whether a global norm is that of one group."""
        return self._extras.clip_per_group

    def hyperparameters(self) -> list[Any]:
        """What is set for the class and for its groups, as it was given."""
        named = [a for a in self.spelling.arguments if a != "learning_rate"]
        groups = self._param_groups if self.grouped else []
        own = [getattr(self, attribute(self, a), None) for a in named]
        return own + [group[a] for group in groups for a in named if a in group]

    def lazy_in(self, group: int) -> bool:
        """Whether sparse gradients in a group touch only the rows that they have."""
        own = self._param_groups[group] if self.grouped else {}
        return bool(own.get("lazy_mode", getattr(self, "_lazy_mode", False)))

    def rate(self) -> Any:
        """The learning rate: a number, or in a program its variable."""
        if paddle.in_dynamic_mode():
            own = self._learning_rate  # get_lr, which a subclass may override, tells users
            return float(own() if isinstance(own, LRScheduler) else own)
        self._create_global_learning_rate()
        return self._global_learning_rate()

    @property
    def wide(self) -> bool:
        """Whether accumulators are float32 also beside a parameter of low precision."""
        narrow = getattr(self, "_use_lowprecision_moment", False)
        return bool(self._multi_precision) or (self.rule in WIDE and not narrow)

    def options(self) -> Options:
        """What a step does besides the rule."""
        return Options(
            ema=self._extras.ema,
            nonfinite=self._extras.nonfinite,
            unscale=self.loss_scale != 1.0,
            master_weights=bool(self._multi_precision),
            state_dtype=None if self.wide else "param",
            report=self._extras.report,
        )

    def prepared(self, pairs: Pairs, hyper: Hyperparameters) -> list[tuple[Any, Any]]:
        """The gradients as Paddle clips and regularises them, where no kernel does it so.

        Args:
            pairs: parameters, each with its gradient.
            hyper: knows which regularisation is left to the kernel.
        """
        # Paddle adds to a gradient in the gradient's dtype, and takes none but its parameter's.
        pairs = [(p, widened(g, p)) for p, g in pairs]
        owners, settings = self.owners(pairs), hyper.settings()
        scopes = [hyper.scope(settings, owner) for owner in owners]
        result: list[Any] = list(pairs)
        for scope in set(scopes):
            places = [k for k, s in enumerate(scopes) if s == scope]
            clip = settings[scope]["grad_clip"]
            if clip is not None:
                new = clip([pairs[k] for k in places])
                for k, pair in zip(places, new, strict=True):
                    result[k] = pair
        return [
            (p, self._create_regularization_of_grad(p, g, self.regularization))
            if hyper.regularized_by_paddle(p)
            else (p, g)
            for p, g in result
        ]

    def owners(self, pairs: Pairs) -> list[int]:
        """The parameter group of each."""
        if not self.grouped:
            return [0] * len(pairs)
        roster = self._roster()
        found = dict(zip(map(id, roster.params), roster.owners, strict=True))
        return [found.get(id(p), 0) for p, _ in pairs]

    def all_parameters(self) -> list[Any]:
        """All parameters."""
        return self._roster().params

    def _roster(self) -> Roster:
        """All parameters, and the group of each, as Paddle's own step finds them."""
        if self.grouped:
            parts = [list(group["params"]) for group in self._param_groups]
            owners = [k for k, part in enumerate(parts) for _ in part]
            return Roster(list(chain.from_iterable(parts)), owners)
        params = list(self._listed or ())
        return Roster(params, [0] * len(params))

    # -- stepping --------------------------------------------------------------------------------

    @framework.non_static_only
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient and do not stop it.

        Args:
            closure: computes the loss again and returns it.

        Returns:
            What the closure returned, or None. What the step measured is in `report`.

        Raises:
            GradientError: under `nonfinite="raise"`, a gradient is infinite or NaN; or its shape
                or dtype is not one that can be stepped.
            StateError: an accumulator was replaced by one that its parameter cannot have.
            HyperparameterError: the step would be Paddle's own, as for parameters that share
                memory, and an option is set that Paddle does not have.
        """
        psdb.breakgraph()
        loss = None
        if closure is not None:
            loss = recording(True, closure)
        if paddle.base.dygraph.base.in_to_static_mode():
            self._declarative_step()
        else:
            _step_now(self)
        return loss

    def _step_in_graph(self) -> None:
        cause = own_step.replaced(self)
        if cause is not None:
            self._leave(cause, super().step)
            return
        roster = self._roster()
        params, owners = roster.params, roster.owners
        grads = core.eager.get_all_grads(params) if params else []
        if any(map(hasattr, params, repeat("main_grad"))):  # float32 gradients that fleet keeps
            found = [getattr(p, "main_grad", None) for p in params]
            grads = [g if m is None else m for m, g in zip(found, grads, strict=True)]
        if all(map(_is_there, grads)) and not any(map(_stops, params)):
            own = roster
        else:
            there = zip(params, grads, strict=True)
            live = [g is not None and not p.stop_gradient for p, g in there]
            params, owners, grads = (list(compress(x, live)) for x in (params, owners, grads))
            own = Roster(params, owners)
        self._apply_now(roster, own, grads, super().step)

    def _apply_now(
        self,
        roster: Roster,
        own: Roster,
        grads: list[Any],
        theirs: Callable[..., Any],
        *args: Any,
    ) -> None:
        """Step in a dynamic graph.

        Args:
            roster: all parameters of the optimizer, and their groups.
            own: those that are stepped.
            grads: their gradients.
            theirs: what of Paddle's does the same.
            *args: of that.
        """
        if not own.params or self._stopped():
            return
        found: Any = self._binding
        if found is None or not found.same(roster) or not found.has(own):
            own, grads = _with_memory(own, grads)
            if not own.params:
                return
            found = self._made(roster, own, grads)
        if isinstance(found, Cause):
            cause = found
        else:
            cause = found.powers_of_no_count()
            if cause is None:
                self._report = found.step(own, grads)
                return
        check_fit(own.params, grads, masters=self._multi_precision)
        self._leave(cause, unrecorded(theirs), *args, stepped=own.params)

    @unrecorded
    def _made(self, roster: Roster, own: Roster, grads: list[Any]) -> Binding | Arrays | Cause:
        """What steps some parameters, made for them; or why the step is Paddle's own."""
        before = self._binding
        self._unbind()
        self._refuse_parts(roster.params)
        cause = own_step.TWICE if own_step.repeats(own.params) else None
        own, grads = own.once(grads)
        native = self._extras.engine == "native" and _on_cpu(own.params)
        if native and before is not None and before.same(roster):
            wanted = own.joined(before.own, roster)
        else:
            wanted = own
        check_names(wanted.params)
        for param in wanted.params:
            check_steppable(param)
        accumulators.create(self, wanted.params, wanted.owners)
        cause = cause or own_step.of_memory(self, wanted.params, strided=not native)
        rule = rules.get(self.rule)
        if cause is not None or not native:
            arrays = Arrays(self, rule, own, grads)  # looks at what Paddle's kernels do not
            return cause or arrays
        made = Binding(self, rule, self._counts, roster, wanted)
        made.stepper.iteration, made.stepper.skipped = self._iteration, self._skipped
        if not (made.same(roster) and made.has(own)):
            raise ParameterError(
                "a parameter or an accumulator was moved in memory by a function of the step "
                "(lr_ratio, apply_decay_param_fun, a scheduler): nothing was changed"
            )
        self._binding = made
        return made

    def _refuse_parts(self, params: Sequence[Any]) -> None:
        """Refuse options that span parameters, if only a part of a model's are here. Paddle's own
        clips of global norms are replaced by what shards the parameters."""
        spanning = [name for name in self._extras.used() if name in ("nonfinite", "report")]
        if spanning:
            paddles = dialects.get("paddle")
            parts.refuse(spanning, parts.mark_of(params, paddles.shard_marks))
            holder = parts.holder_of(self, params, paddles.part_holders)
            parts.refuse(spanning, parts.held_by(holder))

    def _leave(
        self,
        cause: Cause,
        theirs: Callable[..., Any],
        *args: Any,
        stepped: Sequence[Any] = (),
    ) -> Any:
        """Leave a step to Paddle's own class.

        Args:
            cause: why.
            theirs: Paddle's method.
            *args: of the method.
            stepped: the parameters that it steps, as far as that is counted here.
        """
        self._refuse_extras(cause)
        self._unbind()
        counts = self._counts.copy()
        for param in stepped:
            counts[param.name] = counts.get(param.name, 0) + 1
        self._report, self.ran_without_kernels = None, "paddle.optimizer"
        result = under(self._leaving, theirs, *args)
        self.count(counts, self._iteration + bool(stepped), self._skipped)
        return result

    @property
    def _left(self) -> bool:
        """Whether Paddle's own step is running, which calls methods of this class."""
        return self._leaving._is_owned()

    def _stopped(self) -> bool:
        """Whether a gradient scaler has found a non-finite gradient."""
        found = self._get_auxiliary_var("found_inf")
        if isinstance(found, core.eager.Tensor):
            self._set_auxiliary_var("found_inf", bool(found))
        return bool(found)

    def check_rows(self) -> None:
        """Refuse gradients that have rows only, where Paddle does.

        Raises:
            RuntimeError: the rule decays its parameters by their gradients; Paddle's error.
        """
        if self.rule in UNDECAYED and self.regularization is not None:
            raise RuntimeError(
                f"{self.rule} with weight_decay does not take sparse gradients, as in Paddle: set "
                f"weight_decay=None, or use AdamW"
            )

    def _unbind(self) -> None:
        if self._binding is not None:
            self.__dict__.update(self._counted(), _binding=None)

    def count(self, counts: Mapping[str, int], iteration: int, skipped: int) -> None:
        """Note the steps so far, of parameters by Paddle's name and of the optimizer, where
        nothing is bound."""
        known = {**self._counts, **counts}
        self.__dict__.update(_counts=known, _iteration=iteration, _skipped=skipped)

    def _counted(self) -> dict[str, Any]:
        """The counts of now, as the attributes that hold them where nothing is bound."""
        made = None if self._binding is None else self._binding.stepper
        return {
            "_counts": self.steps(),
            "_iteration": self._iteration if made is None else made.iteration,
            "_skipped": self._skipped if made is None else made.skipped,
        }

    @locked
    def steps(self) -> dict[str, int]:
        """The steps of all parameters that have had one, by Paddle's name."""
        bound = {} if self._binding is None else self._binding.counts()
        return self._counts | {name: steps for name, steps in bound.items() if steps}

    # -- Paddle's own entry points ---------------------------------------------------------------

    def backward(
        self,
        loss: Any,
        startup_program: Any = None,
        parameters: Any = None,
        no_grad_set: Any = None,
        callbacks: Any = None,
    ) -> list[tuple[Any, Any]]:
        """The parameters with their gradients; in a program the operations that compute them are
        added. As in Paddle, with groups too."""
        if self.grouped and (not parameters or parameters is self._parameter_list):
            parameters = self.all_parameters()
        return super().backward(loss, startup_program, parameters, no_grad_set, callbacks)

    @locked
    def apply_gradients(self, params_grads: Pairs) -> list[Any]:
        """Step with these gradients; in a program, add the operations that do it.

        Args:
            params_grads: parameters, each with its gradient.

        Returns:
            The operations that were added; none in a dynamic graph.
        """
        own = super().apply_gradients
        return own(params_grads) if self._left else self._apply(params_grads, own, params_grads)

    def _apply(self, params_grads: Pairs, own: Callable[..., Any], *args: Any) -> list[Any]:
        cause = own_step.replaced(self)
        if cause is not None:
            return self._leave(cause, own, *args)
        pairs = [(p, g) for p, g in params_grads if g is not None and not p.stop_gradient]
        params = [p for p, _ in pairs]
        if paddle.in_dynamic_mode():
            stepped = Roster(params, self.owners(pairs))
            self._apply_now(self._roster(), stepped, [g for _, g in pairs], own, *args)
            return []
        if own_step.repeats(params):
            return self._leave(own_step.TWICE, own, *args)
        pairs.sort(key=lambda pair: pair[0].name)
        block = paddle.static.default_main_program().global_block()
        first = len(block.ops)
        ArrayStep(self, rules.get(self.rule), pairs, self.owners(pairs)).append()
        return list(block.ops)[first:]

    @locked
    def _apply_optimize(
        self, loss: Any, startup_program: Any, params_grads: Any, param_group_idx: int = 0
    ) -> list[Any]:
        own = super()._apply_optimize
        args = (loss, startup_program, params_grads, param_group_idx)
        if self._left:
            return own(*args)
        if paddle.in_dynamic_mode():
            theirs = partial(self._in_groups, own) if self.grouped else own
            return self._apply(params_grads, theirs, *args)
        program = loss.block.program if loss is not None else paddle.static.default_main_program()
        with paddle.static.program_guard(program, startup_program):
            return self._apply(params_grads, own, *args)

    def _in_groups(
        self, own: Callable[..., Any], loss: Any, startup_program: Any, pairs: Pairs, _: int
    ) -> list[Any]:
        """What Paddle's `minimize` fails to do, and its `step` does: one parameter group after
        the other."""
        grads = {id(p): g for p, g in pairs if g is not None}
        for k, group in enumerate(self._param_groups):
            mine = [(p, grads[id(p)]) for p in group["params"] if id(p) in grads]
            if mine:
                own(loss, startup_program, {**group, "params": mine}, k)
        return []

    # -- state -----------------------------------------------------------------------------------

    @locked
    @framework.dygraph_only
    def state_dict(self) -> dict[str, Any]:
        """Paddle's state, and under `"isostep"` what it lacks: integer step counts, and the names
        of parameters in the model, if they were given.

        Returns:
            What `paddle.save` writes to a `.pdopt` file, which Paddle's own class reads. Keys end
            in 0, as those of the first optimizer in a process, also if there were others before.
            They are those of Paddle's accumulators, also where a user has put in other tensors.
        """
        if own_step.cause(self, self.all_parameters()) is not None:
            return super().state_dict()
        found = keyed(self._accumulators, super().state_dict())
        steps = self.steps()
        if steps:
            counted = self._counted()
            saved = Saved(self.parameter_names(), steps, counted["_iteration"], counted["_skipped"])
            found["isostep"] = saved.plain()
        return found

    @locked
    @framework.dygraph_only
    def set_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of Paddle or of isostep.

        Parameters are found by their name in the model if both sides know it, by Paddle's own name,
        or by their order where Paddle's automatic names have shifted.

        Args:
            state_dict: what `state_dict` or `paddle.load` returned; is left as it is.

        Raises:
            AssertionError: there is a scheduler here and none in the state; Paddle's error.
            StateError: the state is another model's or is incomplete; nothing was changed.
        """
        if own_step.cause(self, self.all_parameters()) is not None:
            self._unbind()
            super().set_state_dict(state_dict)
            return
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, not {type(state_dict).__name__}")
        scheduler = self._learning_rate
        if isinstance(scheduler, LRScheduler):
            own = state_dict.get("LR_Scheduler")
            if not isinstance(scheduler, paddle.optimizer.lr.LambdaDecay):
                assert own is not None, (
                    "LR_Scheduler state must be included in the state dict except LambdaDecay"
                )
        loaded = load(self, state_dict)
        made = loaded.made()
        if isinstance(scheduler, LRScheduler) and state_dict.get("LR_Scheduler"):
            scheduler.set_state_dict(state_dict["LR_Scheduler"])
        self.__dict__.update({**made, "_binding": None})  # in one go: whole or not at all

    load_state_dict = set_state_dict

    @locked
    def __getstate__(self) -> dict[str, Any]:
        """For copies, which have memory of their own."""
        return {**vars(self), **self._counted(), "_binding": None}

    def parameter_names(self) -> list[tuple[str | None, str]]:
        """Of each parameter its name in the model, if it is known, and Paddle's."""
        return [(self._structured.get(p.name), p.name) for p in self.all_parameters()]

    # -- what Paddle does not have ---------------------------------------------------------------

    @contextlib.contextmanager
    @framework.dygraph_only
    def averaged_params(self) -> Generator[None]:
        """The parameters hold their moving averages inside this context, and are put back after it,
        also when it is left by an exception.

        Raises:
            HyperparameterError: the optimizer was made without `ema`.
        """
        if self._extras.ema is None:
            raise HyperparameterError("there are no averages: make the optimizer with ema=...")
        steps = self.steps()
        params = [p for p in self.all_parameters() if p.name in steps]
        before = [p.detach().clone() for p in params]
        try:
            self._put(params, [accumulators.average(self, p).astype(p.dtype) for p in params])
            yield
        finally:
            self._put(params, before)

    @locked
    @unrecorded
    def _put(self, params: Sequence[Any], values: Sequence[Any]) -> None:
        """Set parameters, all of them."""

        def write(_: commit.Progress) -> None:
            for param, value in zip(params, values, strict=True):
                paddle.assign(value, output=param)

        commit.run(write)

    @property
    def report(self) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`."""
        return self._report

    @property
    def iteration(self) -> int:
        """How many steps the optimizer has had."""
        return self._counted()["_iteration"]

    @property
    def skipped(self) -> int:
        """How many steps were skipped for a non-finite gradient."""
        return self._counted()["_skipped"]

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel: engine, layout and dtype."""
        if self._binding is not None:
            return self._binding.stepper.ran
        return [self.ran_without_kernels] if self.ran_without_kernels else []

    def source(self) -> str:
        """The generated source of the kernels of the last step."""
        return "" if self._binding is None else self._binding.stepper.source

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each parameter; nothing runs."""
        planned = plan(self, rules.get(self.rule))
        cause = own_step.cause(self, self.all_parameters())
        return planned if cause is None else planned.left_to("paddle.optimizer's own step")


def _on_cpu(params: Sequence[Any]) -> bool:
    return all(p.place.is_cpu_place() and not p.is_dist() for p in params)


def _with_memory(own: Roster, grads: list[Any]) -> tuple[Roster, list[Any]]:
    """The parameters that have memory, and their gradients: Paddle's step passes over others."""
    if all(map(_is_initialized, own.params)):
        return own, grads
    there = list(map(_is_initialized, own.params))
    params, owners, grads = (list(compress(x, there)) for x in (own.params, own.owners, grads))
    return Roster(params, owners), grads


@no_eval_frame
def _step_now(optimizer: FusedStep) -> None:
    """The step itself, which a compiled training step calls as it is."""
    under(optimizer._lock, optimizer._step_in_graph)
