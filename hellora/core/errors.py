"""Two errors end a run early, so that every message has one form: what is wrong, where, what to do."""

import difflib
import errno


class HelloraError(Exception):
    """Every error that hellora raises on purpose is one of these; its text is one line for a person."""


class InputError(HelloraError):
    """What the user gave cannot work (a setting, a file, a folder); nothing has been computed. Exit status 2."""


class RunError(HelloraError):
    """A run had to stop; its state is saved and it can be resumed. Exit status 1."""


def nearest(name: str, known: list[str]) -> str:
    """Return the end of an error message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": choose among {', '.join(known)}"


def is_full(error: Exception) -> bool:
    """Tell whether a file could not be written because its disk, or a quota, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"(os error {errno.ENOSPC})" in str(error)  # safetensors writes files itself


def full(error: Exception) -> str:
    """Say that the disk is full, and what to do."""
    where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return f"there is no space left on the disk{where}: free some"


def one_line(message: object) -> str:
    """Write a message, or that of an error, in one line."""
    return " ".join(str(message).split())
