"""`race.png`: the validation-loss curves and how much each optimizer minds its learning rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isostep.cli.race.colours import colours_of
from isostep.cli.race.curves import band_of, cross_height, log_ticks, loss_range, sensitivity_of
from isostep.cli.race.results import Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1f2933"
SOFT = "#5a6672"
FAINT = "#e1e6eb"


def write_picture(path: Path, title: str, places: Sequence[Standing], order: Sequence[str]) -> None:
    """Draw the race.

    Args:
        path: the PNG to write.
        title: one line over both plots.
        places: the standings.
        order: the labels in the order in which colours are given out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = colours_of(order)
    figure = Figure(figsize=(12, 5.4), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(figure)
    curves, rates = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_curves(curves, places, colours)
    _draw_rates(rates, places, colours)
    for axes in (curves, rates):
        _finish(axes)
    figure.suptitle(_no_math(title), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.legend(
        *curves.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(places), 8),
        frameon=False,
        labelcolor=INK,
    )
    figure.savefig(path)


def _no_math(text: str) -> str:
    """Text for matplotlib in which two dollars are no formula."""
    return text.replace("$", r"\$")


def _draw_curves(axes: "Axes", places: Sequence[Standing], colours: Mapping[str, str]) -> None:
    for standing in places:
        band, colour = band_of(standing.best), colours[standing.optimizer]
        axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.1, linewidth=0)
        label = _no_math(f"{standing.rank}  {standing.optimizer}")
        # The better, the further in front.
        front = 3 - standing.rank / len(places)
        axes.plot(band.steps, band.mean, color=colour, linewidth=1.8, label=label, zorder=front)
    axes.set_yscale("log")
    _title(axes, "Validation loss at the best learning rate", "line: mean, band: all seeds")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss")
    axes.margins(x=0.01)


def _draw_rates(axes: "Axes", places: Sequence[Standing], colours: Mapping[str, str]) -> None:
    low, top = loss_range(places)
    for standing in places:
        found, colour = sensitivity_of(standing), colours[standing.optimizer]
        axes.plot(
            found.rates, found.losses, "o-", color=colour, linewidth=1.4, markersize=4.5, alpha=0.9
        )
        height = cross_height(top, standing)
        axes.plot(found.diverged, [height] * len(found.diverged), "x", color=colour, mew=2)
        best = standing.best
        if not best.diverged:
            axes.plot(
                best.learning_rate, best.loss.mean, "o", color=colour, markersize=10, mec="white"
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(low, top)
    _title(axes, "Final validation loss by learning rate", "large dot: best, cross: diverged")
    axes.set_xlabel("learning rate")


def _title(axes: "Axes", what: str, legend: str) -> None:
    axes.set_title(what, loc="left", fontsize=11, color=INK, pad=20)
    axes.annotate(
        legend,
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=SOFT,
    )


def _finish(axes: "Axes") -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        if axis.get_scale() == "log":
            ticks = log_ticks(*axis.get_view_interval())
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
            axis.set_minor_locator(NullLocator())
    axes.grid(True, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
