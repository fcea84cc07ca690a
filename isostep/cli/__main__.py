"""`python -m isostep.cli` is the `isostep` command."""

from isostep.cli import main

main()
