"""The page's two interactive plots as plotly figures."""

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import TYPE_CHECKING, Any

from isostep.cli.race.curves import band_of, cross_height, log_ticks, loss_range, sensitivity_of
from isostep.cli.race.results import Standing

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
INK = "#1f2933"
FAINT = "#e1e6eb"


def curves_figure(places: Sequence[Standing], colours: Mapping[str, str]) -> "Figure":
    """Return validation loss along the steps, a line and a band for each optimizer."""
    bands = [(standing.optimizer, band_of(standing.best)) for standing in places]
    # Bands first, so that no line lies under another's band; then the better, the further in front.
    figure = _figure("optimizer step", "validation loss")
    for label, band in bands:
        figure.add_scatter(
            x=[*band.steps, *band.steps[::-1]],
            y=[*band.high, *band.low[::-1]],
            fill="toself",
            fillcolor=_transparent(colours[label]),
            hoverinfo="skip",
            line={"width": 0},
            meta=label,
            mode="lines",
        )
    for label, band in reversed(bands):
        figure.add_scatter(
            x=list(band.steps),
            y=list(band.mean),
            hovertemplate="%{y:.4f}",
            line={"color": colours[label], "width": 2},
            meta=label,
            mode="lines",
            name=escape(label),  # plotly reads names as HTML
        )
    losses = [loss for _, band in bands for loss in (*band.low, *band.high) if loss > 0]
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(range=[0, max((max(band.steps, default=1) for _, band in bands))])
    _log_axis(figure.layout.yaxis, min(losses, default=0.1) / 1.1, max(losses, default=1.0) * 1.1)
    return figure


def rates_figure(places: Sequence[Standing], colours: Mapping[str, str]) -> "Figure":
    """Return the final validation loss over the learning rates tried."""
    figure = _figure("learning rate", "validation loss")
    low, high = loss_range(places)
    for standing in places:
        label, found = standing.optimizer, sensitivity_of(standing)
        best = standing.best.learning_rate
        shared: dict[str, Any] = {"name": escape(label), "meta": label}
        figure.add_scatter(
            **shared,
            x=list(found.rates),
            y=list(found.losses),
            hovertemplate="lr %{x}: %{y:.4f}",
            line={"color": colours[label], "width": 1.6},
            marker={
                "line": {"color": "white", "width": 1},
                "opacity": 1,
                "size": [14 if rate == best else 7 for rate in found.rates],
            },
            mode="lines+markers",
        )
        figure.add_scatter(
            **shared,
            x=list(found.diverged),
            y=[cross_height(high, standing)] * len(found.diverged),
            hovertemplate="lr %{x}: diverged",
            marker={"color": colours[label], "size": 9, "symbol": "x"},
            mode="markers",
        )
    rates = [trial.learning_rate for standing in places for trial in standing.trials]
    _log_axis(figure.layout.xaxis, min(rates) / 1.6, max(rates) * 1.6)
    _log_axis(figure.layout.yaxis, low, high)
    return figure


def _figure(x_title: str, y_title: str) -> "Figure":
    from plotly.graph_objects import Figure

    axis = {"automargin": True, "gridcolor": FAINT, "linecolor": FAINT, "zeroline": False}
    return Figure(
        layout={
            "font": {"color": INK, "family": FONT, "size": 13},
            "margin": {"b": 48, "l": 56, "r": 12, "t": 12},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "showlegend": False,
            "template": "none",
            "xaxis": {**axis, "title": {"standoff": 12, "text": x_title}},
            "yaxis": {**axis, "title": {"standoff": 12, "text": y_title}},
        }
    )


def _log_axis(axis: Any, low: float, high: float) -> None:
    """Make a plotly axis logarithmic from `low` to `high`, with round numbers on it."""
    ticks = log_ticks(low, high)
    axis.update(
        range=[log10(low), log10(high)],
        ticktext=[f"{tick:g}" for tick in ticks],
        tickvals=ticks,
        type="log",
    )


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.1)"
