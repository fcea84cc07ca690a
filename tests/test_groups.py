"""Laws of groups: which name belongs to which group, and which groups are refused."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isostep.errors import HyperparameterError, UnknownNameError, nearest
from isostep.groups import Group, as_groups, assign

NAMES = ["encoder.0.weight", "encoder.0.bias", "encoder.norm1.weight", "head.weight", "head.Bias"]

# Few letters, so that patterns and names meet often.
names = st.lists(st.text("ab.", min_size=1, max_size=5), min_size=1, max_size=8, unique=True)
patterns = st.text("ab*", min_size=1, max_size=3)


def owners_by_definition(of: list[str], groups: list[Group]) -> list[int]:
    return [next((i for i, g in enumerate(groups) if g.matches(name)), -1) for name in of]


@given(names, st.lists(patterns, max_size=4))
def test_the_first_match_wins_or_a_group_without_names_is_refused(
    given_names: list[str], given_patterns: list[str]
) -> None:
    groups = [Group(pattern) for pattern in given_patterns]
    expected = owners_by_definition(given_names, groups)
    if set(range(len(groups))) <= set(expected):
        assert assign(given_names, groups) == expected
    else:
        with pytest.raises(UnknownNameError):
            assign(given_names, groups)


@given(st.permutations(NAMES))
def test_membership_does_not_depend_on_the_order_of_names(shuffled: list[str]) -> None:
    groups = [Group("*.bias"), Group("encoder.*"), Group("re:[bB]ias")]
    owner = dict(zip(NAMES, assign(NAMES, groups), strict=True))
    assert assign(shuffled, groups) == [owner[name] for name in shuffled]


def test_without_groups_no_name_has_an_owner() -> None:
    assert assign(NAMES, []) == [-1] * len(NAMES)


def test_a_name_that_no_group_matches_has_no_owner() -> None:
    assert assign(NAMES, [Group("head.*")]) == [-1, -1, -1, 0, 0]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*", NAMES),
        ("*.bias", ["encoder.0.bias"]),  # case counts
        ("encoder*weight", ["encoder.0.weight", "encoder.norm1.weight"]),  # a star crosses dots
        ("encoder", []),  # a glob covers the whole name
        ("*.[0-9].*", ["encoder.0.weight", "encoder.0.bias"]),
        ("re:ead", ["head.weight", "head.Bias"]),  # an expression is looked for anywhere
        ("re:^ead", []),
        ("re:(?i)bias$", ["encoder.0.bias", "head.Bias"]),
        (["*.bias", r"re:norm\d"], ["encoder.0.bias", "encoder.norm1.weight"]),
    ],
)
def test_a_pattern_is_a_glob_or_an_expression_or_any_of_several(
    pattern: str | list[str], matched: list[str]
) -> None:
    group = Group(pattern)
    assert [name for name in NAMES if group.matches(name)] == matched


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names() -> None:
    message = r"groups\[1\].*'\*\.0\.bais' matches no parameter; .* 5 names: 'encoder.0.bias', "
    with pytest.raises(UnknownNameError, match=message):
        assign(NAMES, [Group("head.*"), Group("*.0.bais")])
    with pytest.raises(UnknownNameError, match="there are none"):
        assign([], [Group("*")])


def test_every_pattern_of_a_sequence_must_match_something() -> None:
    with pytest.raises(UnknownNameError, match=r"'encodr\.\*' matches no parameter"):
        assign(NAMES, [Group(["*.bias", "encodr.*"])])


def test_a_group_whose_names_are_all_taken_is_refused_and_the_takers_named() -> None:
    groups = [Group("encoder.*", lr=0.1), Group("re:Bias"), Group("re:(?i)bias", lr=0.2)]
    with pytest.raises(UnknownNameError) as refused:
        assign(NAMES, groups)
    message = str(refused.value)
    assert message.startswith("groups[2] Group('re:(?i)bias', lr=0.2) gets no parameter")
    assert "groups[0] Group('encoder.*', lr=0.1) and groups[1] Group('re:Bias')" in message


def test_a_dict_and_a_group_say_the_same() -> None:
    entry = {"match": ["*.bias", "*norm*"], "weight_decay": 0.0, "pattern": "any name is allowed"}
    before = dict(entry)
    group = Group(["*.bias", "*norm*"], weight_decay=0.0, pattern="any name is allowed")
    assert as_groups([entry, group]) == [group, group]
    assert entry == before
    assert group != Group(["*.bias", "*norm*"], weight_decay=0.1)
    assert as_groups([]) == []


def test_a_group_is_shown_as_it_is_written() -> None:
    assert repr(Group("*.bias")) == "Group('*.bias')"
    assert repr(Group(("a", "re:b"), lr=0.1)) == "Group(['a', 're:b'], lr=0.1)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Group(""), r"must be a non-empty string, got '' \(str\)"),
        (lambda: Group("re:"), "must be a non-empty string, got 're:'"),
        (lambda: Group([]), "at least one pattern"),
        (lambda: Group(["*", 3]), r"must be a non-empty string, got 3 \(int\)"),  # type: ignore[list-item]
        (lambda: Group(3), r"a string or a sequence of strings, got 3 \(int\)"),  # type: ignore[arg-type]
        (lambda: Group("re:("), r"'re:\(' is not a regular expression: .*unterminated"),
        (
            lambda: as_groups([{"mach": "*", "lr": 1}]),
            r"groups\[0\] needs the key 'match' .*\['lr', 'mach'\]",
        ),
        (lambda: as_groups(["*.bias"]), r"groups\[0\] must be a Group or a dict with the key"),  # type: ignore[list-item]
        (lambda: as_groups({"match": "*"}), "put it in a list"),  # type: ignore[arg-type]
        (lambda: as_groups(Group("*")), "put it in a list"),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_group_is_refused_with_the_reason(
    build: Callable[[], Any], message: str
) -> None:
    with pytest.raises(HyperparameterError, match=message):
        build()


def test_the_nearest_name_is_found_across_case_and_slips_only() -> None:
    known = ["beta1", "eps", "lr"]
    assert nearest("bate1", known) == "; did you mean 'beta1'?"
    assert nearest("LR", known) == "; did you mean 'lr'?"
    assert nearest("momentum", known) == ""
