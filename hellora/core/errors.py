"""The two ways a run can end early, so that every message has one form: what is wrong, where, what to do."""

import difflib


class HelloraError(Exception):
    """Base of every error that hellora raises on purpose; its text is one line for a person."""


class InputError(HelloraError):
    """What the user gave cannot work (a setting, a file, a folder); nothing has been computed. Exit status 2."""


class RunError(HelloraError):
    """A run had to stop; its state is saved and it can be resumed. Exit status 1."""


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": choose among {', '.join(known)}"
