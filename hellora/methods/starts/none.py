"""The head begins as it was loaded or drawn, and nothing is solved."""

from dataclasses import dataclass

from hellora.methods.strategies import Start


@dataclass(frozen=True)
class NoStart(Start):
    """Leaves the head as it was loaded or drawn."""
