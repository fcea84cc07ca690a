"""Names are what people choose: whatever is in them is shown as it is, and breaks nothing."""

from __future__ import annotations

import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from isostep.cli.race.contest import Budget
from isostep.cli.race.live import LiveProgress, PlainProgress
from isostep.cli.race.page import write_page
from isostep.cli.race.picture import write_picture
from isostep.cli.race.results import Standing
from isostep.cli.race.table import table_of

from .test_faces import places

NAMES = (
    "[/red]",
    "[bold]x[/bold]\\",
    "[link=file:///]x[/link]",
    ":fire: smile:",
    "<!--<script>",
    "</script><b>",
    "<b>bold</b> &amp; &lt;",
    "$x^{$ and $\\nothing$",
    "\\$5",
    "${title} $title",
    "\"quoted\" 'twice'",
    "_hidden",
    "{0} {task} %s %(x)s",
)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def named(name: str) -> list[Standing]:
    first, *others = places()
    return [Standing(first.rank, name, first.trials), *others]


def console(**options: Any) -> Console:
    return Console(file=io.StringIO(), width=300, _environ={}, **options)


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_the_table_shows_it(name: str, named: list[Standing]) -> None:
    to = console()
    to.print(table_of(named, f"3 optimizers on {name}"))
    lines = written(to).splitlines()
    assert f"3 optimizers on {name}" in lines[0]
    assert sum(name in line for line in lines) == 2


def test_progress_shows_it(name: str, named: list[Standing]) -> None:
    for view in (
        PlainProgress(console(), 1, Budget(20, 2, 3)),
        LiveProgress(console(force_terminal=True, color_system=None), 1, Budget(20, 2, 3)),
    ):
        with view:
            view.run_started(name, 0.1, 0)
            view.run_finished(named[0].trials[0].runs[0])
            view.trial_finished(name, named[0].trials[0], named)
        assert f"{name} lr=0.1" in written(view.console)


class Page(HTMLParser):
    """The text of a page outside of scripts, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.texts.append(data)


def test_the_page_shows_it(name: str, named: list[Standing], tmp_path: Path) -> None:
    order = [standing.optimizer for standing in named]
    write_page(tmp_path / "race.html", f"On {name}", f"All of {name}.", named, order)
    text = (tmp_path / "race.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 2  # plotly's and the page's own
    assert "b" not in page.tags
    for shown in (f"On {name}", f"All of {name}."):
        assert shown in page.texts
    assert page.texts.count(name) == 2  # in the standings, and to click at
    own = page.scripts[1]
    assert "<!--" not in own
    figures = json.loads(re.search(r"const figures = (.*);\n", own).group(1))  # type: ignore[union-attr]
    for figure in figures.values():
        traces = [trace for trace in figure["data"] if trace["meta"] == name]
        assert traces
        for shown in (trace["name"] for trace in traces if "name" in trace):
            assert unescape(shown) == name
            assert "<" not in shown


@pytest.mark.filterwarnings("error")
def test_the_picture_shows_it(name: str, named: list[Standing], tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    drawn: list[str] = []
    save = Figure.savefig

    def look(figure: Any, *given: Any, **options: Any) -> Any:
        found = save(figure, *given, **options)
        drawn.append(figure._suptitle.get_text())
        drawn.extend(text.get_text() for text in figure.legends[0].get_texts())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", look)
        write_picture(tmp_path / "race.png", name, named, [s.optimizer for s in named])
    from matplotlib.cbook import is_math_text

    assert not any(map(is_math_text, drawn))
    assert drawn[0].replace("\\$", "$") == name
    assert drawn[1].replace("\\$", "$") == f"1  {name}"


def test_a_difference_shows_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from isostep import dialects
    from isostep.cli.diff import diff
    from isostep.table import Table

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "300")
        for rows in ([[name] * 3], []):
            patch.setattr(
                dialects,
                "difference",
                lambda *_, rows=rows: Table(name, ["", name, "b"], rows),
            )
            diff("AdamW", "a", "b")
            assert name in capsys.readouterr().out
