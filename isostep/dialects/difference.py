"""What differs between two dialects of one rule, as a table of plain text."""

from __future__ import annotations

from typing import Any

from isostep import rules
from isostep.dialects.base import CLIP_KINDS, Dialect, Spelling
from isostep.errors import UnknownNameError
from isostep.rules import Rule
from isostep.table import Table


def compare(rule: str | Rule, a: Dialect, b: Dialect, *, all: bool = False) -> Table:
    """The table of `isostep.dialects.difference`."""
    spellings = _spelling(rule, a, b), _spelling(rule, b, a)
    left, right = (
        _described(spelling, rule if isinstance(rule, Rule) else rules.get(spelling.rule), dialect)
        for spelling, dialect in zip(spellings, (a, b), strict=True)
    )
    aspects = list(dict.fromkeys([*left, *right]))
    rows = [[aspect, left.get(aspect, "-"), right.get(aspect, "-")] for aspect in aspects]
    shown = [row for row in rows if all or row[1] != row[2]]
    return Table(
        title=f"{rule.name if isinstance(rule, Rule) else rule}: {a.name} and {b.name}",
        columns=["aspect", a.name, b.name],
        rows=shown,
        notes=[] if shown else ["no difference"],
    )


def _spelling(rule: str | Rule, dialect: Dialect, other: Dialect) -> Spelling:
    """The dialect's spelling; of a class that only the other has, the spelling of its rule."""
    try:
        return dialect.spelling(rule)
    except UnknownNameError:
        if isinstance(rule, Rule) or rule in rules.names():
            raise
        return dialect.spelling(other.spelling(rule).rule)


def _described(spelling: Spelling, rule: Rule, dialect: Dialect) -> dict[str, str]:
    """Everything the table tells of one spelling: aspect -> text."""
    defaults = spelling.canonical_defaults(rule)
    cells = {"class": spelling.class_name, "update": spelling.formula}
    for name, value in defaults.items():
        cells[f"argument: {name}"] = _argument(spelling, name)
        cells[f"default: {name}"] = _value(spelling, name, value)
    cells["held in float32"] = ", ".join(spelling.in_float32) or "-"
    cells["weight decay"] = _decay(spelling)
    for slot in rule.slots:
        start = defaults[slot.initial] if isinstance(slot.initial, str) else slot.initial
        name = spelling.slots.get(slot.name)
        cells[f"slot: {slot.name}"] = f"{name}, from {start:g}" if name else "-"
    cells |= {f"clip: {kind}": dialect.clip_formulas[kind] for kind in CLIP_KINDS}
    averaging = dialect.averaging
    cells |= {
        "average": averaging.formula,
        "average: momentum": f"{averaging.momentum:g}",
        "average: start": averaging.start,
        "average: overwrites every": str(spelling.average_every),
        "average: without gradient": str(averaging.without_gradient),
        "step count per": dialect.steps_per,
    }
    for quirk in (*spelling.quirks, *dialect.quirks):
        name, _, text = quirk.partition(": ")
        cells[f"quirk: {name.removeprefix(dialect.name + '-')}"] = text
    return cells


def _argument(spelling: Spelling, name: str) -> str:
    note = " (no effect)" if name in spelling.without_effect else ""
    return spelling.names.get(name, "-") + note


def _value(spelling: Spelling, name: str, value: Any) -> str:
    if value is None and name in spelling.none_is_machine_epsilon:
        return "machine epsilon of the dtype"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _decay(spelling: Spelling) -> str:
    if spelling.decay == "coupled":
        return "coupled: added to the gradient"
    scale = "times the learning rate" if spelling.decay_times_lr else "not times the learning rate"
    return f"decoupled, {scale}, {'before' if spelling.decay_first else 'beside'} the rule"
