"""One colour per optimizer, the same in the picture and on the page."""

from collections.abc import Iterable

# Distinct in hue and in lightness, legible on white, and told apart by most colour-blind eyes.
PALETTE = (
    "#0f6fc6",
    "#e0620d",
    "#14866d",
    "#c22f6b",
    "#7a4fc9",
    "#96760a",
    "#3aa6d8",
    "#7d4a2d",
    "#5c6672",
    "#8fa51a",
)


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """Return a colour for each label, in order; after ten they repeat."""
    return {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}
