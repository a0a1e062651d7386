"""Train clients behind a Flower grid: one message per task, with what its row needs; one answer per message.

Flower's own strategies send one record to all and average equal keys, so only its grid is used.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

from flwr.app import RecordDict

from hellora.backends.records import FAILURE, fields_of, from_records, num_bytes, to_records
from hellora.backends.roster import Questions, Reply, Roster, plain
from hellora.backends.wire import most_bytes, pack_task, read_answer
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, WireFormat
from hellora.core.types import AdapterSpec, ClientProfile
from hellora.methods.sharing import answer_part
from hellora.server.backend import Backend, Order

DAY = 24 * 3600.0  # seconds that a message without a deadline is kept
GRACE = 600.0  # seconds after a deadline in which a late answer is still put on record
LATE_ROUNDS = 3  # the same in rounds


class FlowerBackend(Backend):
    """This backend trains on the nodes of a grid.

    `names` has the name that each client joined under, by id; `contract` travels with every task. A round ends when
    all have answered, when `enough` readable answers are there (their values are checked later), or after `deadline`
    seconds.
    """

    def __init__(
        self,
        roster: Roster,
        names: Sequence[str],
        profiles: Sequence[ClientProfile],
        spec: AdapterSpec,
        contract: str,
        format: WireFormat = "fp32",
        deadline: float | None = None,
        enough: int | None = None,
    ) -> None:
        self.roster, self.names, self.profiles, self.spec = roster, tuple(names), tuple(profiles), spec
        self.contract, self.format, self.deadline, self.enough = contract, format, deadline, enough
        self.questions = Questions(roster.grid)
        self.awaited: dict[str, ClientTask] = {}  # by message id, of the last rounds

    def clients(self) -> Sequence[ClientProfile]:
        return self.profiles

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: Flower ends the messages with the run."""

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        nodes = self.roster.find([self.names[order.client] for order in orders])
        until = time.monotonic() + (DAY if self.deadline is None else self.deadline)
        asked: dict[str, ClientTask] = {}  # by message id
        sizes: dict[int, int] = {}  # bytes of each message, by client
        for order in orders:
            if (node := nodes.get(self.names[order.client])) is None:
                yield ClientFailure(order.client, "missing", "not connected")
                continue
            task = order.make()
            content = to_records(pack_task(task, self.format), contract=self.contract)
            sizes[task.client] = num_bytes(content)
            if message := self.send(node, task, content):
                asked[message] = task
            else:
                yield ClientFailure(task.client, "missing", "the message could not be sent")
        self.await_also(asked)
        yield from self.answers(asked, sizes, until)

    def send(self, node: int, task: ClientTask, content: RecordDict) -> str:
        """Send a task; return the message's id, "" where it could not be sent.

        The message is kept so long that a late answer is put on record.
        """
        keep = DAY if self.deadline is None else self.deadline + GRACE
        return self.questions.send({node: content}, "train", keep, str(task.round))[node]

    def await_also(self, asked: Mapping[str, ClientTask]) -> None:
        """Listen for the answers to these messages, too, and no longer for those of older rounds."""
        rounds = [task.round for task in asked.values()]
        oldest = max(rounds, default=0) - LATE_ROUNDS
        self.awaited = {m: late for m, late in self.awaited.items() if late.round >= oldest} | dict(asked)
        keep = DAY if self.deadline is None else self.deadline + GRACE
        self.questions.listen(set(asked), keep)

    def answers(
        self, asked: dict[str, ClientTask], sizes: Mapping[int, int], until: float
    ) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield what comes back, until all of `asked` have answered, enough is readable, or time is up."""
        usable = 0
        while asked and (self.enough is None or usable < self.enough):
            if (reply := self.questions.next(until)) is None:
                break
            message, content = reply
            if (answered := self.awaited.pop(message, None)) is None:
                continue
            late = asked.pop(message, None) is None
            answer = self.answer(answered, content, sizes.get(answered.client, 0))
            if late and isinstance(answer, ClientFailure):
                continue
            usable += not late and isinstance(answer, ClientUpdate)
            yield answer
        for task in asked.values():
            yield ClientFailure(task.client, "missing", self.why_missing(usable))

    def why_missing(self, usable: int) -> str:
        if self.enough is not None and usable >= self.enough:
            return f"not among the first {self.enough}"
        return "no answer" if self.deadline is None else f"no answer within {self.deadline:g} s"

    def answer(self, task: ClientTask, content: Reply, sent: int) -> ClientUpdate | ClientFailure:
        """Read what a reply says, and check it against the task that it answers."""
        if isinstance(content, str):
            return ClientFailure(task.client, "missing", content)
        try:
            arrived = num_bytes(content)
            if arrived > (limit := most_bytes(task, answer_part(task, self.spec))):  # before it is copied
                return ClientFailure(
                    task.client, "rejected", f"its answer has {arrived} bytes, at most {limit} are read"
                )
            if not content.array_records:
                return ClientFailure(task.client, "missing", plain(str(fields_of(content).get(FAILURE, "no reason"))))
            found = read_answer(from_records(content), task, self.spec)
        except Exception as error:  # a client may send anything
            why = plain(f"its answer cannot be read: {type(error).__name__}: {error}")
            return ClientFailure(task.client, "rejected", why)
        if isinstance(found, ClientFailure):
            return replace(found, reason=plain(found.reason))
        return replace(found, metrics={**found.metrics, "received_bytes": sent, "sent_bytes": arrived})
