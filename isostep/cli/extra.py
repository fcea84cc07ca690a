"""The libraries of the `cli` extra, looked for (not imported) before a command starts its work."""

from importlib.util import find_spec

LIBRARIES = ("typer", "rich", "matplotlib", "plotly", "sklearn")


class MissingExtraError(ImportError):
    """A library of the `cli` extra is not installed."""


def require_extra() -> None:
    """Check that every library of the `cli` extra can be imported.

    Looking costs a fraction of a millisecond; failing here is kinder than after a minute of racing.

    Raises:
        MissingExtraError: names what is missing and the command that installs it.
    """
    missing = [library for library in LIBRARIES if find_spec(library) is None]
    if missing:
        raise MissingExtraError(
            f"the command line needs {', '.join(missing)}, which this Python does not have. "
            "Install the extra: pip install 'isostep[cli]'"
        )
