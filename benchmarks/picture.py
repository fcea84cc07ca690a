"""`cpu.png`: how many times faster isostep steps than the best of each framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Results, Speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2933"
SOFT = "#5a6672"
FAINT = "#e1e6eb"
COLOURS = {"torch": "#e0620d", "optax": "#0f6fc6", "paddle": "#7a4fc9", "keras": "#c22f6b"}
NAMES = {
    "torch": "torch.optim, best of fused, foreach and loop",
    "optax": "optax, jit with donation",
    "paddle": "Paddle",
    "keras": "Keras 3, best backend",
}
THICKNESS = 0.2


def write(path: Path, results: Results) -> None:
    """Draw one panel for each model that has something to show; none, and there is no file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {m: {c: results.best(m, c) for c in results.cases} for m in results.models}
    found = {model: speeds for model, speeds in found.items() if any(speeds.values())}
    ratios = [
        s.ratio for speeds in found.values() for best in speeds.values() for s in best.values()
    ]
    if not ratios:
        return
    size = (2.2 + 4.0 * len(found), 1.9 + 0.62 * len(results.cases))
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), sharey=True, sharex=True, squeeze=False)[0]
    families = [f for f in COLOURS if any(f in b for s in found.values() for b in s.values())]
    for axes, (model, speeds) in zip(panels, found.items(), strict=True):
        _panel(axes, model, speeds, families)
        _milestones(axes, min(ratios), max(10.0, *ratios))
    _frame(figure, families, results.threads)
    figure.savefig(path)


def _frame(figure: Figure, families: Sequence[str], threads: int) -> None:
    from matplotlib.patches import Patch

    title = f"How many times faster isostep steps, {threads} CPU threads, float32"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    handles = [Patch(color=COLOURS[f], label=f"than {NAMES[f]}") for f in families]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK
    )


def _panel(
    axes: Axes, model: str, speeds: Mapping[str, Mapping[str, Speed]], families: Sequence[str]
) -> None:
    axes.set_xscale("log")
    for row, best in enumerate(speeds.values()):
        for number, family in enumerate(families):
            if family in best:
                place = row + (number - (len(families) - 1) / 2) * THICKNESS
                _bar(axes, place, best[family].ratio, family)
    axes.set_title(model, loc="left", fontsize=11, color=INK, pad=8)
    axes.set_yticks(range(len(speeds)), list(speeds))
    axes.set_ylim(len(speeds) - 0.5, -0.5)
    axes.axvline(1, color=SOFT, linewidth=1)
    axes.grid(True, axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10, length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _bar(axes: Axes, place: float, ratio: float, family: str) -> None:
    axes.barh(place, ratio - 1, left=1, height=0.88 * THICKNESS, color=COLOURS[family])
    axes.annotate(
        f"{ratio:.1f}" if ratio < 20 else f"{ratio:.0f}",
        (max(ratio, 1), place),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=SOFT,
    )


def _milestones(axes: Axes, smallest: float, largest: float) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = min(0.95, 0.9 * smallest), 1.8 * largest
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low < t < high]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{t:g}x" for t in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
