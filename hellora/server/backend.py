"""The seam between the server and the clients: two methods, the same for a loop and for a network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate
from hellora.core.types import ClientProfile


@dataclass(frozen=True, eq=False)
class Order:
    """A task to be: who is to train, and how the task is made. That is done when it is sent, and not before, so that
    the adapters of a large cohort need not all be in memory at once."""

    client: int
    make: Callable[[], ClientTask]  # the same task at every call


class Backend(ABC):
    """Where the clients are."""

    @abstractmethod
    def clients(self) -> Sequence[ClientProfile]:
        """Every client of the federation."""

    @abstractmethod
    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        """One answer per order, in any order, as they arrive."""
