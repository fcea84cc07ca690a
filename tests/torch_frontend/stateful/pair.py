"""torch.optim's optimizer and isostep's, side by side through the same edits.

After each step isostep's numbers are held against torch's own class in float64, from the state that
was there before the step; then torch's world takes over isostep's values, so that differences do
not add up. torch's world decides what raises and what the state looks like. Where torch steps,
isostep does too, or it refuses by one of `REFUSALS` and has changed nothing.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import isostep
import isostep.torch

from ...fuzzing import Line
from ...interruptions import by_exception, by_signal, instructions
from .edits import EDITS
from .gradients import KINDS, PAST_CHECKS, give
from .reference import Reference
from .world import DTYPES, Interrupted, Nothing, Snapshot, Stop, World, dense, readable, same_bits

EPS = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.complex64: 2.0**-24,
    torch.complex128: 2.0**-53,
}
WIDE = (torch.float64, torch.complex128)
SMALLEST = {dtype: torch.finfo(dtype).tiny for dtype in EPS}

CLASSES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.25, "momentum": 0.75, "dampening": 0.25, "weight_decay": 0.125},
    "Adagrad": {"lr": 0.25, "lr_decay": 0.125, "initial_accumulator_value": 0.5, "eps": 0.125},
    "RMSprop": {"lr": 0.25, "alpha": 0.75, "eps": 0.25, "momentum": 0.5, "weight_decay": 0.125},
    "Adadelta": {"lr": 0.5, "rho": 0.75, "eps": 0.125, "weight_decay": 0.125},
    "Adam": {"lr": 0.25, "betas": (0.75, 0.875), "eps": 0.125, "amsgrad": True},
    "AdamW": {"lr": 0.25, "betas": (0.75, 0.875), "eps": 0.125, "weight_decay": 0.125},
    "Adafactor": {"lr": 0.25, "beta2_decay": -0.75, "eps": (0.125, 0.25), "d": 1.5},
}
MOMENTUM = 0.75
"""Of the average of the parameters."""
CENTERED = {"lr": 0.25, "alpha": 0.75, "eps": 0.25, "momentum": 0.5, "centered": True}


# -- isostep's options, and what a torch user writes for them --------------------------------------


def _grads(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _clip_value(optimizer: Any) -> bool:
    for p in _grads(optimizer):  # torch does not clip complex ones: here each part is
        part = torch.view_as_real(p.grad) if p.grad.is_complex() else p.grad
        part.clamp_(-0.5, 0.5)
    return True


def _clip_norm(optimizer: Any) -> bool:
    for p in _grads(optimizer):
        torch.nn.utils.clip_grad_norm_([p], 0.5, foreach=False)
    return True


def _clip_global_norm(optimizer: Any) -> bool:
    torch.nn.utils.clip_grad_norm_(_grads(optimizer), 0.5, foreach=False)
    return True


def _skip(optimizer: Any) -> bool:
    return all(bool(dense(p.grad).isfinite().all()) for p in _grads(optimizer))


def _halved(name: str) -> float:
    return 0.5 if name[-1] in "02468" else 1.0


def _excluded(name: str) -> bool:
    return name[-1] in "0369"


def _by_hand(named: list[tuple[str, Any]], own: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups that a torch user makes for what patterns of names say."""
    found: dict[tuple[bool, float], list[Any]] = {}
    for name, p in named:
        found.setdefault((_excluded(name), _halved(name)), []).append((name, p))
    return [
        {
            "params": pairs,
            **own,
            **({"weight_decay": 0.0} if excluded else {}),
            "lr_ratio": ratio * own.get("lr_ratio", 1.0),
        }
        for (excluded, ratio), pairs in found.items()
    ]


def _split_by_hand(group: dict[str, Any]) -> list[dict[str, Any]]:
    return _by_hand(group["params"], {k: v for k, v in group.items() if k != "params"})


@dataclass(frozen=True)
class Option:
    """An option of isostep.

    Args:
        arguments: of isostep's class.
        before: what a torch user does to the gradients before the step; False if there is none.
        patterns: whether it goes by the names of parameters, as `_by_hand` does.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Any], bool] = lambda optimizer: True
    patterns: bool = False


OPTIONS = (
    Option(),
    Option(),
    Option({"clip": isostep.Clip(value=0.5)}, _clip_value),
    Option({"clip": isostep.Clip(norm=0.5)}, _clip_norm),
    Option({"clip": isostep.Clip(global_norm=0.5)}, _clip_global_norm),
    Option({"nonfinite": "skip"}, _skip),
    Option({"report": True}),
    Option({"ema": MOMENTUM}),
    Option({"exclude_from_weight_decay": ["re:[0369]$"], "lr_ratio": _halved}, patterns=True),
)

# -- steps -----------------------------------------------------------------------------------------


def _plain(w: World) -> None:
    w.optimizer.step()


def _with_closure(w: World) -> None:
    assert w.optimizer.step(lambda: 7.0) == 7.0


def _closure_raises(w: World) -> None:
    def closure() -> float:
        raise Stop

    w.optimizer.step(closure)


def _hook_raises(w: World) -> None:
    def stop(*_: Any) -> None:
        raise Stop

    handle = w.optimizer.register_step_pre_hook(stop)
    try:
        w.optimizer.step()
    finally:
        handle.remove()


def _inference(w: World) -> None:
    with torch.inference_mode():
        w.optimizer.step()


def _in_a_thread(w: World) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            w.optimizer.step()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _default_dtype(w: World) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        w.optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)


def _out_of_range(w: World) -> None:
    group = w.groups[0] if w.groups else {}
    before = group.get("lr")
    group["lr"] = float("nan")
    try:
        w.optimizer.step()
    finally:
        group["lr"] = before


HOW = {
    0: _plain,
    1: _with_closure,
    2: _closure_raises,
    3: _hook_raises,
    4: _inference,
    5: _in_a_thread,
    6: _default_dtype,
    7: _out_of_range,
}
NUMBERS = max(len(KINDS), 2 * len(HOW))

REFUSALS = {
    r"lr=nan is out of range": "torch steps to NaN",
    r"is not a number|is out of range": "torch looks at no range",
    r": not possible ": "an option of isostep beside what only torch steps",
    r"^Interrupted": "an exception out of nowhere, before anything was written",
    r"does not support sparse|not compatible with sparse": "as torch does, whose "
    "gradients are made dense here where an option is imitated",
    r"Adafactor does not support complex": "as torch does, unless a skipped step has no gradients",
    r"share memory and one is not contiguous": "documented: make them one parameter",
    r"the state .* has shape": "a state of another shape, which torch may broadcast or not look at",
    r"the gradient of parameter .* has shape": "a gradient of another shape",
    r"the gradient of parameter .* has no kernel": "a real gradient of a complex parameter",
}
"""Where isostep may refuse what torch steps, and why."""
REFUSALS_OF_AVERAGES = {
    r"the storage of parameter .* bytes that it shows": "without a gradient it is averaged, and "
    "its memory has been freed",
}


class Pair:
    """The two worlds.

    Args:
        line: numbers of class, option, dtype, how many parameters, and the seed.
    """

    def __init__(self, line: Line) -> None:
        which, option, dtype, count, seed = line.numbers
        names = [*CLASSES, "RMSprop"]
        self.name = names[which]
        arguments = CENTERED if which == len(CLASSES) else CLASSES[self.name]
        self.option = OPTIONS[option]
        loop = {} if self.name == "Adafactor" else {"foreach": False}
        theirs, ours = getattr(torch.optim, self.name), getattr(isostep.torch, self.name)
        self._given, self._loads = "", False
        patterns = self.option.patterns
        self.theirs = World(
            lambda p: theirs(_by_hand(p, {}) if patterns else p, **arguments, **loop),
            seed,
            patterns,
            _split_by_hand if patterns else None,
        )
        self.ours = World(
            lambda p: ours(p, **arguments, **self.option.arguments, **loop),
            seed,
            patterns,
            strike=_strike,
        )
        for w in self.worlds:
            w.begin(
                [w.new_param(seed + n, DTYPES[dtype], (seed + n) % 7) for n in range(1 + count)]
            )

    @property
    def worlds(self) -> tuple[World, World]:
        return self.theirs, self.ours

    def do(self, line: Line) -> None:
        """An edit, or a step."""
        i, k = line.numbers
        self._loads = line.what.startswith("load")
        if line.what == "step":
            self._give(i, k)
            self._step(HOW.get(k // 2, _plain))
        else:
            self._step(lambda w: EDITS[line.what](w, i, k), stepping=False)

    def _give(self, i: int, k: int) -> None:
        name = list(KINDS)[i % len(KINDS)]
        if name in PAST_CHECKS and self.option.arguments:
            name = "dense"  # what stands for an option would put it in its place again
        self._given = name
        for w in self.worlds:
            give(w, name, k)

    # -- one edit or step of both ----------------------------------------------------------------

    def _step(self, act: Callable[[World], None], stepping: bool = True) -> None:
        theirs, ours = self.worlds
        self._torch_can(act)
        before, was = ours.snapshot(), theirs.snapshot()
        ratios, iteration = [group.get("lr_ratio") for group in theirs.groups], self._iteration()
        ran = _Steps(theirs, self.option)
        with ran:
            a = _outcome(act, theirs)
        if self._loads and a is None:
            self._loaded(ratios)
        b = _outcome(act, ours)
        if isinstance(b, Interrupted) and before.changed(ours):
            b = None  # the step is whole
        if isinstance(a, Stop) and isinstance(b, isostep.HyperparameterError):
            self._refused(b, before, ran)  # before a closure is called
        elif isinstance(a, Stop | Nothing) or isinstance(b, Stop | Nothing):
            assert type(a) is type(b), (a, b)
        elif b is not None and a is None:
            self._refused(b, before, ran)
            was.back(theirs)
        elif b is not None:
            # torch's own step may raise in the middle, also where isostep takes it.
            own = ours.optimizer.ran == ["torch.optim"]
            changed = before.changed(ours) if stepping and not own else ""
            assert not changed, f"{b!r} changed {changed}"
            if stepping:
                was.back(theirs)
        if a is None and b is None:
            self._compare(ran)
            if ran.count == 1 and iteration is not None:
                self._check_averages(before, iteration)
        self._follow()

    def _loaded(self, ratios: list[Any]) -> None:
        """What isostep's loading keeps of what was asked for, in torch's groups."""
        for group, ratio in zip(self.theirs.groups, ratios, strict=True):
            if ratio is not None:
                group.setdefault("lr_ratio", ratio)
            names = group.get("param_names")
            if self.option.patterns and names and all(map(_excluded, names)):
                group["weight_decay"] = 0.0

    def _iteration(self) -> int | None:
        """The steps that isostep's averages have had; None if they cannot be known."""
        if "ema" not in self.option.arguments or not self.ours.groups:
            return None
        try:
            return self.ours.optimizer.state_dict()["param_groups"][0]["isostep_iteration"]
        except KeyError:  # torch's, for the state of a parameter that is in no group
            return None

    def _check_averages(self, before: Snapshot, iteration: int) -> None:
        """That averages followed the parameters, from where these or they were before the step."""
        old = {p: value for p, key, _, value in before.slots if key == "average"}
        start = dict(before.params) | old
        for p in self.ours.stepped:
            average = self.ours.optimizer.state.get(p, {}).get("average")
            tied = sum(readable(q) and q.data_ptr() == p.data_ptr() for q in self.ours.stepped)
            if average is None or tied > 1 or not average.numel():
                continue
            new, was = dense(p).to(_wide(p)), dense(start[p]).to(_wide(p))
            right = new if iteration == 0 else MOMENTUM * was + (1 - MOMENTUM) * new
            got = dense(average).to(_wide(p))
            sizes = new.abs() + was.abs()
            coarse = max(EPS[p.dtype], EPS[average.dtype], EPS[torch.float32])
            bound = 4 * (coarse * sizes + SMALLEST[p.dtype])
            far = ~((got - right).abs() <= bound) & sizes.isfinite()
            assert not bool(far.any()), ("average", got[far][:3], right[far][:3])

    def _torch_can(self, act: Any) -> None:
        for p in self.theirs.stepped:
            assert readable(p), "torch itself would end the process"

    def _refused(self, error: BaseException, before: Snapshot, ran: _Steps) -> None:
        text = f"{type(error).__name__}: {error}"
        may = [*REFUSALS, *(REFUSALS_OF_AVERAGES if "ema" in self.option.arguments else ())]
        assert any(re.search(known, text) for known in may), f"refused: {text}"
        # Of several steps those before the refused one have been taken.
        changed = before.changed(self.ours) if ran.count < 2 else ""
        assert not changed, f"{text!r} changed {changed}"

    def _compare(self, ran: _Steps) -> None:
        theirs, ours = self.worlds
        for k, (p, q) in enumerate(zip(theirs.params, ours.params, strict=True)):
            held, mine = theirs.optimizer.state.get(p, {}), ours.optimizer.state.get(q, {})
            held = {key: value for key, value in held.items() if value is not None}
            names = mine.keys() - {"average"}  # which torch's own class does not know
            assert held.keys() - {"average"} == names, (k, held.keys(), mine.keys())
            held = {key: held[key] for key in names}
            right, eps = ran.right(p), _coarsest([q, *mine.values()])
            tied = sum(readable(r) and r.data_ptr() == q.data_ptr() for r in ours.stepped)
            self._same(f"parameter {k}", p, q, right.get("param"), ran, eps, max(1, tied))
            read = PASSED_ON * tied * EPS[q.dtype] if tied > 1 else 0.0
            for key, value in held.items():
                self._same(f"{key} of {k}", value, mine[key], right.get(key), ran, eps, read=read)
        a, b = (
            [{k: v for k, v in g.items() if k != "params"} for g in w.groups] for w in self.worlds
        )
        assert a == b, (a, b)

    def _same(
        self,
        what: str,
        a: Any,
        b: Any,
        right: Any,
        ran: _Steps,
        eps: float,
        tied: int = 1,
        read: float = 0.0,
    ) -> None:
        """Whether isostep's tensor is right: torch's bits where no step was taken, else the numbers
        of float64 in the dtype that torch's has; after several steps torch's own, which are as good
        as the coarsest of a parameter's tensors (`eps`). What `tied` parameters share is rounded by
        each of them, and read by the next, whose slots are as rough as that (`read`)."""
        if not isinstance(a, Tensor):
            assert a == b, (what, a, b)
            return
        assert a.shape == b.shape, (what, a.shape, b.shape)
        if self._loads and not ran.count:  # torch's loading casts slots to the parameter's dtype
            assert same_bits(a, b.to(a.dtype)), (what, a, b)
            return
        # torch's SGD and Adafactor make slots of the first gradient, isostep of the parameter.
        of_gradient = "momentum_buffer" in what or self.name == "Adafactor"
        made_of_another = self._given == "of_another_dtype" and of_gradient
        assert a.dtype == b.dtype or made_of_another, (what, a.dtype, b.dtype)
        assert a.device == b.device, (what, a.device, b.device)
        if not readable(b):
            return
        own = ran.count == 1 and self.ours.optimizer.ran == ["torch.optim"]
        if not ran.count or own:
            assert same_bits(a, b), (what, a, b)
            return
        once = isinstance(right, Tensor) and right.shape == b.shape
        x, y = dense(right if once else a).to(_wide(b)), dense(b).to(_wide(b))
        if b.is_complex():  # torch's products make all of a number NaN if a part is infinite
            assert bool((x.isfinite() == y.isfinite()).all()), (what, x, y)
            x, y = (t.where(t.isfinite(), 0) for t in (x, y))
        assert bool((x.isnan() == y.isnan()).all()), (what, x, y)
        finite = x[x.isfinite()].abs()
        scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
        largest = x.abs() if tied == 1 else scale  # between two of them it may be anything
        stored = tied * (EPS[b.dtype] * largest + SMALLEST[b.dtype])
        wide = b.dtype in WIDE and not self._norm_in_float32()
        arithmetic = TOLERANCE * EPS[torch.float64 if wide else torch.float32]
        if self.name == "Adafactor":  # its factors are read back as they are stored
            arithmetic = max(arithmetic, 4 * eps)
        bound = stored + (arithmetic + read) * scale if once else TOLERANCE * eps * scale
        far = ~x.isnan() & (x != y) & ~((x - y).abs() <= bound)
        over = x.abs() > torch.finfo(b.dtype).max  # what float64 holds and the dtype does not
        far &= ~(over & y.isinf())
        assert not bool(far.any()), (what, x[far][:3], y[far][:3], scale)

    def _norm_in_float32(self) -> bool:
        """Whether one factor scales all gradients whose norm has no more digits than float32."""
        over_all = "clip" in self.option.arguments and self.option.before is _clip_global_norm
        return over_all and any(p.dtype not in WIDE for p in self.ours.stepped)

    def _follow(self) -> None:
        """torch's world takes isostep's values over, and what its states are made of."""
        theirs, ours = self.worlds
        for p, q in zip(theirs.params, ours.params, strict=True):
            if p.dtype != q.dtype:  # torch has left a cast halfway, for what this test holds
                p.grad = q.grad = None
                p.data = q.data.clone()
            if readable(q):
                with torch.no_grad():
                    p.detach().copy_(q.detach())
            held, mine = theirs.optimizer.state.get(p, {}), ours.optimizer.state.get(q, {})
            for key in held.keys() - mine.keys():
                del held[key]
            for key, value in mine.items():
                if isinstance(value, Tensor) and value.is_inference():
                    mine[key] = value.clone()  # torch's own step has left what none can write to
            for key, value in mine.items():
                old = held.get(key)
                if _alike(old, value) and not old.is_inference():
                    old.detach().copy_(value)
                else:
                    own = value.detach().clone() if isinstance(value, Tensor) else value
                    theirs.optimizer.state[p][key] = own


TOLERANCE = 4096.0
"""Roundings, in units of the last place of numbers near 1. A step is at most some 16 operations
on numbers below 8, of which a division by an epsilon of 1/8 or more, times a rate of 1/4 and
powers up to 1/0.25 of the bias corrections, passes on 32 times its operands' error."""
PASSED_ON = 32


class _Steps:
    """Inside it torch's steps are preceded by what stands for isostep's option, and counted."""

    def __init__(self, world: World, option: Option) -> None:
        self._world, self._option = world, option
        self.count = 0
        self._kept: list[Any] = []
        self._rates: list[tuple[dict[str, Any], Any, Any]] = []
        self._reference: Reference | None = None

    def __enter__(self) -> None:
        self._handle = register_optimizer_step_pre_hook(self._before)
        self._after = register_optimizer_step_post_hook(self._behind)

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if optimizer is not self._world.optimizer:  # the reference
            return
        self.count += 1
        slower = [g for g in optimizer.param_groups if g.get("lr_ratio", 1.0) != 1.0]
        self._rates = [(g, g["lr"], g["lr"] * g["lr_ratio"]) for g in slower]
        for group, _, rate in self._rates:
            group["lr"] = rate
        with torch.no_grad():
            try:
                self._reference = Reference(optimizer, type(optimizer), self._option.before)
            except Exception:  # as in a step of torch itself, if that is no good either
                self._reference = None
            self._kept = [(p, p.grad) for p in _grads(optimizer)]
            if self._option.arguments:
                for p, grad in self._kept:
                    p.grad = dense(grad).clone()
            if not self._option.before(optimizer):
                for p, _ in self._kept:
                    p.grad = None

    def right(self, p: Any) -> dict[str, Any]:
        """The right numbers of a parameter and its slots, by name; none for several steps."""
        if self._reference is None or self.count != 1 or p not in self._reference.params:
            return {}
        return {"param": self._reference.params[p], **self._reference.slots(p)}

    def _behind(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if optimizer is not self._world.optimizer:  # the reference
            return
        for group, before, rate in self._rates:
            if group["lr"] is rate:  # else the user has brought it back, after an exception
                group["lr"] = before
        self._rates = []
        for p, grad in self._kept:
            if p.grad is not grad:  # one that has gone past torch's checks cannot be given again
                p.grad = grad

    def __exit__(self, *raised: object) -> None:
        self._handle.remove()
        self._after.remove()
        self._behind(self._world.optimizer, None, None)


def _coarsest(tensors: list[Any]) -> float:
    """The rounding of the dtype with the fewest digits."""
    return max(EPS[t.dtype] for t in tensors if isinstance(t, Tensor) and t.dtype in EPS)


def _alike(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or not isinstance(a, Tensor):
        return False
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _strike(step: Callable[[], Any], place: int) -> None:
    """Have an exception or Ctrl-C strike at an instruction of a step, if it has so many."""
    struck: list[bool] = []

    def strike() -> None:
        struck.append(True)
        (by_signal if place % 2 else by_exception)()

    try:
        instructions(step, place, strike)
    except BaseException as error:  # libraries turn it into errors of their own
        if not struck:
            raise
        _let_go(step)
        raise Interrupted from error


def _let_go(step: Any) -> None:
    """Release the optimizer's lock where it is still held: a trace function can raise between the
    end of a `with` block and the call that leaves it, where signals and errors cannot."""
    lock = step.__self__._lock
    while lock._is_owned():
        lock.release()


def _outcome(act: Callable[[World], None], world: World) -> BaseException | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act(world)
    except Exception as error:
        return error
    return None
