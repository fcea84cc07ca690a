"""The README's measured table: `python -m benchmarks.readme` writes it from the last results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.peers import FRONT_ENDS, LABELS
from benchmarks.results import Results, Speed

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
README = ROOT / "README.md"
MODEL = "gpt2"
SMALLER = ("tiny", "resnet50")
ON_TENSORS = ("AdamW", "Adafactor", "clip+AdamW+EMA")
FAMILIES = {"torch": "torch.optim", "optax": "optax", "paddle": "Paddle", "keras": "Keras 3"}
_PLACE = re.compile("(<!-- measured -->\n).*?(<!-- end -->)", re.DOTALL)


def table(results: Results) -> str:
    """Markdown: on the large model isostep's step and how many times longer the best of each
    framework takes, and the best of torch.optim on the smaller ones."""
    torch = FAMILIES["torch"]
    heads = ["step", f"{MODEL}, ms", *(f"{f}" for f in FAMILIES.values())]
    heads += [f"{torch} on {model}" for model in SMALLER]
    lines = [heads]
    for case in results.cases:
        best = results.best(MODEL, case)
        own = results.own_ms(MODEL, case)
        cells = [case, "-" if own is None else f"{own:.0f}"]
        cells += [_times(best.get(family)) for family in FAMILIES]
        cells += [_times(results.best(model, case).get("torch")) for model in SMALLER]
        lines.append(cells)
    return _markdown(lines)


def front_ends(results: Results) -> str:
    """Markdown: how many times longer each framework's own class takes than isostep's in its
    place, called as its users call it."""
    columns = [(case, model) for case in ON_TENSORS for model in results.models]
    lines = [["in the place of", *(f"{case}, {model}" for case, model in columns)]]
    for peer, own in FRONT_ENDS.items():
        found = [results.speed(model, case, peer, own) for case, model in columns]
        if any(found):
            lines.append([f"{LABELS[peer]}: `{own.split()[0]}`", *map(_times, found)])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _times(speed: Speed | None) -> str:
    return (
        "-"
        if speed is None
        else f"{speed.ratio:.2g}x"
        if speed.ratio < 10
        else (f"{speed.ratio:.0f}x")
    )


def with_table(text: str, results: Results) -> str:
    """The README with its tables renewed."""
    tables = iter((table(results), front_ends(results)))
    found, count = _PLACE.subn(lambda m: m[1] + next(tables) + m[2], text)
    if count != 2:
        raise ValueError(f"{README.name} has {count} places for tables, not 2")
    return found


def main() -> None:
    """Renew the tables."""
    results = Results.read(json.loads(RESULTS.read_text()))
    README.write_text(with_table(README.read_text(), results))


if __name__ == "__main__":
    main()
