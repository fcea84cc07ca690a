"""Groups: ordered patterns over parameter names, each with its own hyperparameters.

Front-ends name the parameters and the plan prints which group took which; this module only decides
membership. It knows no rule: whether `weight_decay` exists, and in what range, is checked where the
rule is known.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from isostep.errors import HyperparameterError, UnknownNameError

_REGEX = "re:"
_LISTED = 3  # names offered when a pattern matches nothing


@dataclass(frozen=True, init=False)
class Group:
    r"""Parameters chosen by name, and the hyperparameters that hold for them.

    Names are dotted paths such as `encoder.0.weight`. A pattern is a glob over the whole name, case
    sensitive, in which `*` also crosses dots; with the prefix `re:` it is a regular expression
    looked for anywhere in the name (`re.search`; anchor it with `^` and `$`).

        Group("*.bias", weight_decay=0.0)
        Group(["*.bias", r"re:norm\d*\.weight$"], weight_decay=0.0)

    Args:
        pattern: one pattern, or a sequence of them; a name belongs if any of them matches.
        **hyperparameters: what is different for these parameters, under any name; none at all is
            allowed, and then the group only keeps its names out of later groups.

    Raises:
        HyperparameterError: a pattern is empty, is not a string, or is not a regular expression.
    """

    patterns: tuple[str, ...]
    hyperparameters: Mapping[str, Any]

    def __init__(self, pattern: str | Sequence[str], /, **hyperparameters: Any) -> None:
        patterns = (pattern,) if isinstance(pattern, str) else _as_tuple(pattern)
        if not patterns:
            raise HyperparameterError("a group needs at least one pattern, got an empty sequence")
        object.__setattr__(self, "patterns", tuple(_checked(each) for each in patterns))
        object.__setattr__(self, "hyperparameters", hyperparameters)

    def __repr__(self) -> str:
        pattern = self.patterns[0] if len(self.patterns) == 1 else list(self.patterns)
        settings = "".join(f", {name}={value!r}" for name, value in self.hyperparameters.items())
        return f"Group({pattern!r}{settings})"

    def matches(self, name: str) -> bool:
        """Return whether any pattern of this group matches `name`."""
        return any(_matches(pattern, name) for pattern in self.patterns)


def as_groups(entries: Iterable[Group | Mapping[str, Any]]) -> list[Group]:
    """Return groups from a sequence of `Group`s and of dicts, in their order.

    A dict holds its pattern or patterns under `match` and hyperparameters under every other key:
    `{"match": "*.bias", "weight_decay": 0.0}`.

    Raises:
        HyperparameterError: an entry is neither of the two, lacks `match`, or has a bad pattern.
    """
    if isinstance(entries, (Group, Mapping, str)):
        raise HyperparameterError(f"groups must be a sequence, got {entries!r}; put it in a list")
    return [_as_group(entry, index) for index, entry in enumerate(entries)]


def assign(names: Sequence[str], groups: Sequence[Group], called: str = "") -> list[int]:
    """Return for each name the index of the first group that matches it, or -1 for none.

    Args:
        names: the parameter names, dotted paths.
        groups: in order of precedence; the first match wins.
        called: the argument that the patterns came in, if it is not `groups`.

    Raises:
        UnknownNameError: a pattern matches no name, or every name that a group matches is already
            taken by earlier groups. Either way settings would silently do nothing.
    """
    owners = [-1] * len(names)
    for index, group in enumerate(groups):
        matched: set[int] = set()
        for pattern in group.patterns:
            found = [i for i, name in enumerate(names) if _matches(pattern, name)]
            if not found:
                raise UnknownNameError(
                    _nothing_matches(pattern, called or f"groups[{index}]", names)
                )
            matched.update(found)
        free = [i for i in matched if owners[i] < 0]
        if not free:
            earlier = sorted({owners[i] for i in matched})
            raise UnknownNameError(_nothing_left(index, earlier, groups))
        for i in free:
            owners[i] = index
    return owners


def _as_tuple(pattern: Sequence[object]) -> tuple[object, ...]:
    try:
        return tuple(pattern)
    except TypeError:
        raise HyperparameterError(
            f"a group's pattern must be a string or a sequence of strings, got {_shown(pattern)}"
        ) from None


def _checked(pattern: object) -> str:
    if not isinstance(pattern, str) or pattern in ("", _REGEX):
        raise HyperparameterError(
            f"a group's pattern must be a non-empty string, got {_shown(pattern)}; "
            "'*' matches every name"
        )
    if pattern.startswith(_REGEX):
        try:
            re.compile(pattern.removeprefix(_REGEX))
        except re.error as error:
            raise HyperparameterError(
                f"the group pattern {pattern!r} is not a regular expression: {error}"
            ) from None
    return pattern


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith(_REGEX):
        return re.search(pattern.removeprefix(_REGEX), name) is not None
    return fnmatchcase(name, pattern)


def _as_group(entry: object, index: int) -> Group:
    if isinstance(entry, Group):
        return entry
    if not isinstance(entry, Mapping):
        raise HyperparameterError(
            f"groups[{index}] must be a Group or a dict with the key 'match', got {_shown(entry)}"
        )
    settings = {str(key): value for key, value in cast(Mapping[Any, Any], entry).items()}
    if "match" not in settings:
        raise HyperparameterError(
            f"groups[{index}] needs the key 'match' for its pattern, got only {sorted(settings)}"
        )
    return Group(settings.pop("match"), **settings)


def _nothing_matches(pattern: str, called: str, names: Sequence[str]) -> str:
    said = f"{called}: the pattern {pattern!r} matches no parameter"
    if not names:
        return f"{said}: there are none"
    # No cutoff: the pattern is all the user has to go on, so even a distant name helps.
    close = difflib.get_close_matches(pattern.removeprefix(_REGEX), names, n=_LISTED, cutoff=0.0)
    return f"{said}; the nearest of the {len(names)} names: {', '.join(map(repr, close))}"


def _nothing_left(index: int, earlier: Sequence[int], groups: Sequence[Group]) -> str:
    takers = " and ".join(f"groups[{i}] {groups[i]!r}" for i in earlier)
    return (
        f"groups[{index}] {groups[index]!r} gets no parameter: every name it matches is already "
        f"taken by {takers}; put the narrower pattern first"
    )


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"
