"""A backend connects the server and the clients: it has two methods, the same for a loop and for a network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate
from hellora.core.types import ClientProfile


@dataclass(frozen=True, eq=False)
class Order:
    """An order says who is to train, and how the task is made. That is done when it is sent, and not before: a
    client that is not reached costs nothing. The task then stays until the attempt has ended, for aggregators see it.
    """

    client: int
    make: Callable[[], ClientTask]  # the same task at every call


class Backend(ABC):
    """A backend reaches the clients, wherever they are."""

    @abstractmethod
    def clients(self) -> Sequence[ClientProfile]:
        """Return every client of the federation."""

    @abstractmethod
    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one answer per order as they arrive, whichever comes first."""
