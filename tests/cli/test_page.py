"""`race.html`: whole without a network, and looked at in a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from isostep.cli.race.colours import colours_of
from isostep.cli.race.page import write_page

from .browser import chromium, needs_chromium
from .test_faces import places

ORDER = ["Second", "First [b]&", "Lost"]
TITLE = "3 optimizers on <bowl>"


class Tags(HTMLParser):
    """Collects every attribute that can load something, and the text of styles."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.styles: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")
            if name == "style":
                self.styles.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style":
            self.styles.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "race.html"
    write_page(path, TITLE, "All the same.", places(), ORDER)
    return path


def test_the_page_loads_nothing(page: Path) -> None:
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert tags.loads == ["data:,"]
    assert not any("url(" in style or "@import" in style for style in tags.styles)
    assert not {"iframe", "img", "object", "embed", "base"} & set(tags.tags)
    assert tags.tags.count("script") == 2


def test_labels_and_titles_are_text_and_not_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "3 optimizers on &lt;bowl&gt;" in text
    assert "<bowl>" not in text
    assert "First [b]&amp;</td>" in text


def test_a_label_cannot_end_the_script(tmp_path: Path) -> None:
    (place, *_) = places()
    evil = type(place)(1, "</script><b>", place.trials)
    write_page(tmp_path / "race.html", TITLE, "", [evil], [evil.optimizer])
    tags = Tags()
    tags.feed((tmp_path / "race.html").read_text(encoding="utf-8"))
    assert "b" not in tags.tags


def looked_at(page: Path, width: int, height: int, probe: str) -> tuple[np.ndarray, str]:
    """Return a screenshot of the page in a frame of `width` pixels, and what `probe` finds.

    A window is never narrower than some 500 pixels; a frame in it can be.
    """
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" style="border:0;width:{width}px;'
        f'height:{height}px"></iframe><script>const frame = document.querySelector("iframe");'
        "const errors = []; frame.onload = () => { const page = frame.contentWindow;"
        f"document.body.dataset.found = JSON.stringify({probe}); }};</script></body>"
    )
    window = f"--window-size={max(width, 500)},{height}"
    picture = frame.with_suffix(".png")
    chromium(frame, window, f"--screenshot={picture}")
    document = chromium(frame, window, "--dump-dom")
    return matplotlib.image.imread(picture)[:, :width, :3], document


PROBE = (
    "[page.document.documentElement.scrollWidth, page.document.querySelectorAll('.js-line').length,"
    " page.performance.getEntriesByType('resource').length]"
)


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_both_plots_in_colour_at_any_width(page: Path, width: int) -> None:
    pixels, document = looked_at(page, width, 2200, PROBE)
    # As wide as the frame and no wider; lines drawn; no resource asked for.
    scroll_width, lines, resources = _found(document)
    assert scroll_width == width
    assert lines >= 5
    assert resources == 0
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    for colour in colours_of(ORDER).values():
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - wanted).max(axis=-1) < 0.02).sum() > 150, colour


@needs_chromium
def test_a_click_on_a_name_takes_it_out_of_both_plots(page: Path) -> None:
    probe = (
        "(() => { const lines = () => page.document.querySelectorAll('.js-line').length;"
        " const before = lines(); page.document.querySelector('.chips button').click();"
        " return [before, lines()]; })()"
    )
    _, document = looked_at(page, 1280, 1000, probe)
    before, after = _found(document)
    assert after < before


def _found(document: str) -> list[int]:
    start = document.index('data-found="[') + len('data-found="[')
    return [int(part) for part in document[start : document.index("]", start)].split(",")]
