"""Who runs: turns `AdamW, SGD(momentum=0.9)` into contestants, by the names of registered rules.

Nothing here knows any rule: whatever is registered, a user's own included, can run.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from isostep.cli.race.contest import Contestant, Optimizer
from isostep.cli.race.errors import RaceError
from isostep.cli.race.fingerprint import source_fingerprint
from isostep.cli.race.task import Params

if TYPE_CHECKING:
    from isostep.rules import Rule


@dataclass(frozen=True)
class Entry:
    """A rule's name and the hyperparameters that differ from its dialect's defaults."""

    rule: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The entry as a user writes it."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return f"{self.rule}({settings})" if settings else self.rule


def parse_entries(text: str) -> list[Entry]:
    """Read a list such as `AdamW, SGD(momentum=0.9, nesterov=True)`.

    Values are Python literals.

    Raises:
        RaceError: the text is no such list, or enters one optimizer twice.
    """
    try:
        body = ast.parse(f"[{text}]", mode="eval").body
        assert isinstance(body, ast.List)
        entries = [_entry(node) for node in body.elts]
    except (SyntaxError, ValueError, AssertionError):
        raise RaceError(
            f"cannot read the optimizers {text!r}: write names with commas between them, and "
            "hyperparameters in brackets, such as AdamW,SGD(momentum=0.9)"
        ) from None
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise RaceError(f"{', '.join(twice)} is entered twice")
    if not entries:
        raise RaceError("no optimizer is entered")
    return entries


def registered(dialect: str) -> list[Entry]:
    """Return an entry for every registered rule that a dialect has, with its defaults.

    Raises:
        RaceError: an unknown dialect.
    """
    from isostep import dialects, rules

    try:
        absent = dialects.get(dialect).absent
    except ValueError as error:
        raise RaceError(str(error)) from None
    return [Entry(name) for name in rules.names() if name not in absent]


def _entry(node: ast.expr) -> Entry:
    if isinstance(node, ast.Name):
        return Entry(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        settings = {
            keyword.arg: ast.literal_eval(keyword.value)
            for keyword in node.keywords
            if keyword.arg is not None
        }
        if len(settings) == len(node.keywords):
            return Entry(node.func.id, settings)
    raise ValueError(ast.dump(node))


def contestants(entries: Iterable[Entry], dialect: str) -> dict[str, Contestant]:
    """Return a contestant per entry, by label, after building each once on a small array.

    Args:
        entries: who runs.
        dialect: how the rules are spelled; see `isostep.dialects`.

    Raises:
        RaceError: an unknown rule, dialect or hyperparameter, or a value out of range; the message
            is the library's own.
    """
    return {entry.label: contestant(entry, dialect) for entry in entries}


def contestant(entry: Entry, dialect: str) -> Contestant:
    """Return the contestant of one entry; see `contestants`."""
    from isostep import rules
    from isostep.numpy import Optimizer as NumpyOptimizer

    settings = dict(entry.hyperparameters)
    if "lr" in settings:
        raise RaceError(f"{entry.label}: the race itself chooses lr; leave it out")

    def make(params: Params, learning_rate: float) -> Optimizer:
        return NumpyOptimizer(entry.rule, params, lr=learning_rate, dialect=dialect, **settings)

    try:
        rule = rules.get(entry.rule)
        centre = default_rate(rule, dialect)
        make({"probe": np.zeros((2, 2), np.float32)}, centre)
    except ValueError as error:
        raise RaceError(f"{entry.label}: {error}") from error
    identity = {
        "rule": rule.name,
        "dialect": dialect,
        "hyperparameters": settings,
        "source": source_fingerprint(rule.coefficients, rule.update),
    }
    return Contestant(make, centre, identity)


def default_rate(rule: "Rule", dialect: str) -> float:
    """Return the learning rate that a dialect, else the rule itself, gives where a user gives none.

    Raises:
        ValueError: an unknown dialect, or one without this rule.
    """
    from isostep import dialects

    spelled = dialects.get(dialect).spelling(rule).defaults.get("lr")
    for rate in (spelled, rule.defaults.get("lr")):
        if isinstance(rate, int | float) and rate > 0:
            return float(rate)
    return Contestant.centre
