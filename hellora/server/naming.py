"""Name the strategy in each error that it raises."""

from collections.abc import Iterator
from contextlib import contextmanager

from hellora.core.errors import HelloraError, RunError


@contextmanager
def naming(strategy: object, round: int) -> Iterator[None]:
    """Turn whatever a strategy raises, other than hellora's own errors, into a RunError that names it."""
    try:
        yield
    except HelloraError:
        raise
    except Exception as error:
        cls, why = type(strategy), " ".join(str(error).split())
        file = cls.__module__.rpartition(".")[2]
        raise RunError(f"round {round}: {file}:{cls.__qualname__} raised {type(error).__name__}: {why}") from error
