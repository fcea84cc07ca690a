"""An optimizer with all that its user holds: parameters, gradients, saved states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SECOND = ("sq", "sum", "avg", "acc", "var")
"""Parts of the names of slots that hold squares, and so no number below zero."""
SHAPES = ((5,), (4, 4), (3, 5), (), (2, 3, 4), (1,), (6, 2, 3, 3), (0,))
DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)


class Special(nn.Parameter):
    """A parameter of a user's own class."""


class World:
    """One of two worlds that get the same edits.

    Args:
        make: makes an optimizer of parameters or groups.
        seed: of the values.
        named: whether parameters have names.
        split: the groups that are added for one; None: that one.
        strike: has an exception strike at a place of a call, as `interruptions.instructions` does;
            None: there is none.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        seed: int,
        named: bool = False,
        split: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        strike: Callable[[Callable[[], Any], int], None] | None = None,
    ) -> None:
        self._make, self._seed = make, seed
        self._named, self._split, self._strike = named, split, strike
        self._drawn = 0
        self.params: list[Any] = []
        self.saved: list[Any] = []
        self.kept: list[Any] = []
        """What a user holds on to: a tensor whose memory is shared must live."""
        self.optimizer: Any = None

    def begin(self, params: list[Any]) -> None:
        """Make the optimizer."""
        self.params = list(params)
        self.optimizer = self._make(self.with_names(params, 0))

    def with_names(self, params: list[Any], first: int) -> list[Any]:
        """The parameters as an optimizer gets them, numbered from `first`."""
        if not self._named:
            return params
        return [(f"p{first + n}", p) for n, p in enumerate(params)]

    def add_group(self, group: dict[str, Any]) -> None:
        """Add a group to the optimizer."""
        for part in self._split(group) if self._split else [group]:
            self.optimizer.add_param_group(part)

    def load(self, saved: Any) -> None:
        """Load a state. What torch refuses it may have loaded in part; here it has not then."""
        before = self.optimizer.state, self.optimizer.param_groups
        try:
            self.optimizer.load_state_dict(saved)
        except Exception:
            if self._strike is None:  # isostep is to see to it itself
                self.optimizer.state, self.optimizer.param_groups = before
            raise

    def anew(self) -> Any:
        """An optimizer for the same groups, without a state."""
        if not self._named:
            return self._make([{**g, "params": list(g["params"])} for g in self.groups])
        # Patterns go by the names of all parameters, and one must match.
        names = [name for group in self.groups for name in group.get("param_names", ())]
        found = self.stepped
        if len(names) != len(found) or "p0" not in names:
            raise Nothing("not every parameter has its name")
        return self._make(list(zip(names, found, strict=True)))

    def struck(self, place: int) -> None:
        """A step in the middle of which an exception strikes, where this world has that.

        Raises:
            Interrupted: it did, before the step had written or after it had ended.
        """
        if self._strike is None:
            self.optimizer.step()
        else:
            self._strike(self.optimizer.step, place)

    # -- what there is ---------------------------------------------------------------------------

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def stepped(self) -> list[Any]:
        """The parameters that the groups have now, each once."""
        found: dict[int, Any] = {id(p): p for group in self.groups for p in group["params"]}
        return list(found.values())

    def param(self, i: int) -> Any:
        """One of the parameters in the groups, or one that was, if they are empty."""
        among = self.stepped or self.params
        return among[i % len(among)]

    def slot(self, i: int, k: int) -> tuple[dict[str, Any], str]:
        """One tensor of the state: where it stands, and under which name."""
        places = [
            (held, key)
            for p in self.stepped
            for held in [self.optimizer.state.get(p, {})]
            for key in sorted(held)
            if key != "step" and isinstance(held[key], Tensor)
        ]
        if not places:
            raise Nothing("there is no state yet")
        return places[(i * 7 + k) % len(places)]

    def step_of(self, i: int) -> dict[str, Any]:
        """The state of a parameter, with a `step`."""
        found = [
            held
            for p in self.stepped
            for held in [self.optimizer.state.get(p, {})]
            if isinstance(held.get("step"), Tensor)
        ]
        if not found:
            raise Nothing("nothing is counted yet")
        return found[i % len(found)]

    def tensors(self) -> Iterator[tuple[Any, Any]]:
        """Parameters, and the tensors of their states, each with a name."""
        for k, p in enumerate(self.params):
            yield (k, "param"), p
            for key, value in sorted(self.optimizer.state.get(p, {}).items()):
                yield (k, key), value

    # -- what is drawn ---------------------------------------------------------------------------

    def values(self, shape: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        """New values: those of the other world are the same."""
        self._drawn += 1
        random = torch.Generator().manual_seed(self._seed * 10007 + self._drawn)
        parts = torch.randn((2, *shape), generator=random, dtype=torch.float64).clamp(-3, 3)
        return (torch.complex(*parts) if dtype.is_complex else parts[0]).to(dtype)

    def new_param(self, k: int, dtype: torch.dtype, kind: int = 0) -> Any:
        """A parameter that nobody has yet; `kind` is a way to lie in memory, or a class."""
        shape = SHAPES[k % len(SHAPES)]
        data = self.values(shape, dtype)
        if kind == 1 and len(shape) == 2:
            data = self.values(shape[::-1], dtype).t()
        elif kind == 2 and shape:
            data = self.values((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
        elif kind == 3 and len(shape) == 4:
            data = data.to(memory_format=torch.channels_last)
        elif kind == 4:
            data = self.values((data.numel() + 3,), dtype)[3:].view(shape)
        if kind == 5:
            return Special(data)
        return data.requires_grad_() if kind == 6 else nn.Parameter(data)

    def saved_state(self, i: int) -> Any:
        if not self.saved:
            raise Nothing("no state was saved yet")
        return self.saved[i % len(self.saved)]

    # -- going back ------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        return Snapshot(self)


class Nothing(Exception):
    """An edit finds nothing that it could be done to."""


class Stop(Exception):
    """A user's own exception."""


class Interrupted(Exception):
    """A step was struck by an exception out of nowhere."""


class Snapshot:
    """All values of a world, to be compared with or gone back to."""

    def __init__(self, world: World) -> None:
        state = world.optimizer.state
        self.groups = [_group(group) for group in world.groups]
        self.params = [(p, p.detach().clone()) for p in world.params if readable(p)]
        self.grads = [(p, p.grad, _copy(p.grad)) for p in world.params]
        self.state = {p: dict(held) for p, held in state.items()}
        self.slots = [
            (p, key, value, _copy(value))
            for p, held in state.items()
            for key, value in held.items()
        ]

    def changed(self, world: World) -> str:
        """What of the world is no longer as it was; empty if nothing."""
        state = world.optimizer.state
        for k, (p, before) in enumerate(self.params):
            if not same_bits(p, before):
                return f"parameter {k}"
        for k, (p, grad, before) in enumerate(self.grads):
            if p.grad is not grad or not same_bits(grad, before):
                return f"gradient {k}"
        if [_group(group) for group in world.groups] != self.groups:
            return "groups"
        now = {p: held for p, held in state.items() if held}
        was = {p: held for p, held in self.state.items() if held}
        if now.keys() != was.keys():
            return f"the state of {len(now.keys() ^ was.keys())} parameters"
        for p, held in now.items():
            if held.keys() != was[p].keys():
                return f"the names in a state: {sorted(held.keys() ^ was[p].keys())}"
        for p, key, value, before in self.slots:
            if not same_bits(now[p][key], before):
                return f"{key} of a state"
            if now[p][key] is not value:
                return f"which tensor {key} is"
        return ""

    def back(self, world: World) -> None:
        """Go back to what was; for torch's own optimizer, which keeps nothing elsewhere."""
        with torch.no_grad():
            for p, before in self.params:
                p.detach().copy_(before)
            for _, _, value, before in self.slots:
                if isinstance(value, Tensor):
                    value.detach().copy_(before)
            for p, grad, _ in self.grads:
                if p.grad is not grad:
                    p.grad = grad
        state = world.optimizer.state
        state.clear()
        state.update({p: dict(held) for p, held in self.state.items()})


def _group(group: dict[str, Any]) -> dict[str, Any]:
    rest = {k: _plain(v) for k, v in group.items() if k != "params"}
    return {**rest, "params": [id(p) for p in group["params"]]}


def _plain(value: Any) -> Any:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if readable(value) else None
    return copy.deepcopy(value)


def readable(tensor: Tensor) -> bool:
    """Whether the memory that a tensor claims is there."""
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return True
    if type(tensor) not in (Tensor, nn.Parameter, Special):
        return True
    if tensor._is_zerotensor():
        return True
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def same_bits(a: Any, b: Any) -> bool:
    """Whether two values are the same, NaN equal to NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is None or b is None or a == b
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta == b.is_meta
    x, y = (dense(t) for t in (a, b))
    return bool(torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num()))


def dense(tensor: Tensor) -> Tensor:
    """The values of a tensor of any kind, apart from autograd."""
    tensor = tensor.detach()
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return (tensor + 0 if tensor._is_zerotensor() else tensor).resolve_conj().resolve_neg()
