"""The one exception of the race that is the user's to mend."""


class RaceError(ValueError):
    """Something the user gave cannot be raced: a task, a name, an option. The text says what to do.

    Mistakes inside a user's own task or rule keep their own exception and traceback.
    """
