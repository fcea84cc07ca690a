"""`race.html`: the race on one page that holds everything it needs, plotly's script included."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from isostep.cli.race.colours import colours_of
from isostep.cli.race.plots import curves_figure, rates_figure
from isostep.cli.race.results import Standing
from isostep.cli.race.table import HEADINGS, cells
from isostep.cli.race.wording import EDGE_NOTE


def write_page(
    path: Path, title: str, terms: str, places: Sequence[Standing], order: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: the HTML file to write.
        title: heading of the page.
        terms: a sentence on what was raced and at which budget.
        places: the standings.
        order: the labels in the order in which colours are given out.
    """
    from plotly.offline import get_plotlyjs

    from isostep import __version__

    colours = colours_of(order)
    figures = {
        "curves": curves_figure(places, colours).to_plotly_json(),
        "rates": rates_figure(places, colours).to_plotly_json(),
    }
    template = Template(files("isostep.cli.race").joinpath("page.html").read_text(encoding="utf-8"))
    edge = any(standing.at_the_edge for standing in places)
    page = template.substitute(
        title=escape(title),
        terms=escape(terms),
        headings="".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS.values()),
        rows="\n".join(_row(standing, colours) for standing in places),
        note=f'<p class="hint">{escape(EDGE_NOTE)}</p>' if edge else "",
        chips="\n".join(_chip(standing.optimizer, colours) for standing in places),
        version=escape(__version__),
        plotly=get_plotlyjs(),
        # A script element ends at `</script`, and not at all after `<!--<script`.
        figures=json.dumps(figures).replace("<", "\\u003c"),
    )
    path.write_text(page, encoding="utf-8")


def _row(standing: Standing, colours: Mapping[str, str]) -> str:
    rank, optimizer, *numbers = map(escape, cells(standing))
    tail = "".join(
        f'<td data-heading="{escape(heading)}">{number}</td>'
        for heading, number in zip(list(HEADINGS)[2:], numbers, strict=True)
    )
    dot = _dot(colours[standing.optimizer])
    return f'<tr><td>{rank}</td><td data-rank="{rank}">{dot}{optimizer}</td>{tail}</tr>'


def _chip(optimizer: str, colours: Mapping[str, str]) -> str:
    name = escape(optimizer)
    return (
        f'<button type="button" aria-pressed="true" data-optimizer="{name}">'
        f"{_dot(colours[optimizer])}{name}</button>"
    )


def _dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'
