"""A framework of one file, `toy.py`, and its optimizers' places: for the tests of `peers`."""

from __future__ import annotations

from peers.places import Places


class Ours:
    """What stands in the place of the toy's optimizer."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        """Count."""
        self.steps += 1


def places() -> Places:
    """Where the toy's optimizer is found."""
    import toy  # pyright: ignore[reportMissingImports]

    return Places(
        pairs=[(toy.Adam, Ours)],
        modules=["toy"],
        constructs=["tests.toy_peer:Ours.__init__"],
        steps=["tests.toy_peer:Ours.step"],
    )
