"""The README's measured table: `python -m benchmarks.readme` writes it from the last results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.peers import FRONT_ENDS
from benchmarks.results import Results, Speed

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
README = ROOT / "README.md"
MODEL = "gpt2"
SMALLER = ("tiny", "resnet50")
FAMILIES = {"torch": "torch.optim", "optax": "optax", "paddle": "Paddle", "keras": "Keras 3"}
_PLACE = re.compile("(<!-- measured -->\n).*?(<!-- end -->)", re.DOTALL)


def table(results: Results) -> str:
    """Markdown: on the large model isostep's step and how many times longer the best of each
    framework takes, and the best of torch.optim on the smaller ones."""
    torch = FAMILIES["torch"]
    heads = ["step", f"{MODEL}, ms", *(f"{f}" for f in FAMILIES.values())]
    heads += [f"{torch} on {model}" for model in SMALLER]
    heads += [f"{FRONT_ENDS['torch']} over {torch}"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for case in results.cases:
        best = results.best(MODEL, case)
        own = results.own_ms(MODEL, case)
        cells = [case, "-" if own is None else f"{own:.0f}"]
        cells += [_times(best.get(family)) for family in FAMILIES]
        cells += [_times(results.best(model, case).get("torch")) for model in SMALLER]
        cells += [_times(results.speed(MODEL, case, "torch", FRONT_ENDS["torch"]))]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _times(speed: Speed | None) -> str:
    return (
        "-"
        if speed is None
        else f"{speed.ratio:.2g}x"
        if speed.ratio < 10
        else (f"{speed.ratio:.0f}x")
    )


def with_table(text: str, results: Results) -> str:
    """The README with its table renewed."""
    found, count = _PLACE.subn(lambda m: m[1] + table(results) + m[2], text)
    if count != 1:
        raise ValueError(f"{README.name} has {count} places for the table, not 1")
    return found


def main() -> None:
    """Renew the table."""
    results = Results.read(json.loads(RESULTS.read_text()))
    README.write_text(with_table(README.read_text(), results))


if __name__ == "__main__":
    main()
