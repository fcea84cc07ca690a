"""`docs/peers.md`: counts of all suites, and every difference with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.compare import COUNTED, Difference
from peers.results import Result
from peers.suites import SUITES, Suite

PAGE = Path(__file__).resolve().parent.parent / "docs" / "peers.md"
BEGIN = """# The frameworks' own tests, on isostep

Each framework tests its optimizers. `make peers` runs those tests twice: with the framework's own
classes, and with isostep's put in their place by a pytest plugin, in every module of the framework,
in its registries and in its tables of optimizers under test. Only differences count. A test that
fails on both sides, for want of a GPU or because it was written for another version, says nothing
about isostep.

`make peers` writes this page from `peers/results/`. It fails on a difference without a reason, on a
listed difference that no longer differs, and on a suite in which no test used isostep.

"""
HOW = """
## Run it

```
make peers                 # optax and Keras, whose packages ship their tests
make peers PEERS=folder    # all; the folder has checkouts at the installed versions
python -m peers --help     # one suite, some tests, JSON
```

"""
NONE = "\n## Differences\n\nNone.\n"
LAYOUT = """The folder of checkouts. Git, or a `source.txt` in a checkout, says which state it is:

"""


def page(results: Mapping[str, Result], suites: Mapping[str, Suite] = SUITES) -> str:
    """The page.

    Args:
        results: what is known, by suite.
        suites: all of them, in the order of the page.
    """
    known = [(suite, results.get(name)) for name, suite in suites.items()]
    parts = [_table(known), _sources(known), _differences(known), HOW, LAYOUT, _layout(suites)]
    return BEGIN + "".join(parts)


def _table(known: Sequence[tuple[Suite, Result | None]]) -> str:
    head = ["suite", "version", "on", *(f"theirs {c}" for c in COUNTED)]
    head += [*(f"ours {c}" for c in COUNTED), "tests that use isostep", "differences"]
    lines = [head]
    for suite, result in known:
        if result is None:
            lines.append([suite.title, *["not run"] * 2, *["-"] * (len(head) - 3)])
            continue
        numbers = [*(result.theirs[c] for c in COUNTED), *(result.ours[c] for c in COUNTED)]
        lines.append(
            [
                suite.title,
                result.versions[suite.package],
                result.day,
                *map(str, numbers),
                str(result.touched),
                _differing(result),
            ]
        )
    rule = ["---"] * 3 + ["---:"] * (len(head) - 3)
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _sources(known: Sequence[tuple[Suite, Result | None]]) -> str:
    """Which tests those were that the packages do not ship, each repository once."""
    stated = {s.checkout: r.source for s, r in known if r is not None and r.source}
    lines = [f"- {checkout}: {source}\n" for checkout, source in stated.items()]
    return "".join(["\nThe checkouts that these were run from:\n\n", *lines]) if lines else ""


def _differing(result: Result) -> str:
    if not result.faults:
        return f"{len(result.differences)}, justified" if result.differences else "none"
    return f"{len(result.differences)}, **{len(result.faults)} without reason**"


def _differences(known: Sequence[tuple[Suite, Result | None]]) -> str:
    text = ["\n## Differences\n\n"]
    for suite, result in known:
        if result is not None and (result.differences or result.faults or result.absent):
            text.append(f"{suite.title}:\n\n")
            text += [_line(d) for d in result.differences]
            text += [f"- `{pattern}`: no such file; not run.\n" for pattern in result.absent]
            text += [f"- {fault}\n" for fault in _other_faults(result)]
            text.append("\n")
    return "".join(text).rstrip("\n") + "\n" if len(text) > 1 else NONE


def _line(difference: Difference) -> str:
    ends = f"{difference.theirs}, with isostep {difference.ours}"
    return f"- `{difference.test}`: {ends}. {difference.reason or '**Not justified.**'}\n"


def _other_faults(result: Result) -> list[str]:
    unjustified = {d.test for d in result.unjustified}
    return [f for f in result.faults if not any(f.startswith(f"{t}: ") for t in unjustified)]


def _layout(suites: Mapping[str, Suite]) -> str:
    needing = [suite for suite in suites.values() if suite.checkout]
    files = [f"{suite.checkout}/{path}\n" for suite in needing for path in suite.files]
    return "".join(["```\n", *dict.fromkeys(files), "```\n"])


def write(results: Mapping[str, Result], path: Path = PAGE) -> None:
    """Write the page; it is replaced whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(page(results))
    part.replace(path)
