"""Clients behind a Flower grid: one message per task, with what its row needs; one answer per message.

Flower's own strategies send one record to all and average equal keys, so only its grid is used. Who a node is, it says
itself when it is asked ("query.join"): node ids name nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from hellora.backends.records import FAILURE, fields_of, from_records, num_bytes, to_records
from hellora.backends.wire import most_bytes, pack_task, read_answer
from hellora.core.errors import RunError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, WireFormat
from hellora.core.types import AdapterSpec, ClientProfile
from hellora.methods.sharing import answer_part
from hellora.server.backend import Backend, Order

POLL_SECONDS, SLOWEST_POLL = 0.2, 5.0  # between looks for answers: 2 % of the time waited, between these
ASK_SECONDS = 120.0  # for a node to say who it is; it may be busy with an older task, and is asked again
BACK_SECONDS = 30.0  # the same within a round, where a client of it is not there
DAY = 24 * 3600.0  # seconds that a message without a deadline is kept
GRACE = 600.0  # seconds after a deadline in which a late answer is still put on record
LATE_ROUNDS = 3  # the same in rounds

FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  # seconds before a node that could not join is asked again
LONGEST_LINE = 500  # characters that are shown of what a client says

Reply = RecordDict | str  # or why there is none
Admit = Callable[[int, Mapping[str, Any]], str]  # (node, what it says of itself): its name; ValueError: not that way


@dataclass
class Questions:
    """Messages on their way, and what came back."""

    grid: Grid
    poll: float = POLL_SECONDS
    replies: "SimpleQueue[tuple[str, Reply] | Exception]" = field(default_factory=SimpleQueue)

    def ask(self, contents: Mapping[int, RecordDict], kind: str, ttl: float) -> dict[int, str]:
        """Send each node its content, and listen; the message id of each, "" where it could not be sent."""
        sent = self.send(contents, kind, ttl)
        self.listen({message for message in sent.values() if message}, ttl)
        return sent

    def send(self, contents: Mapping[int, RecordDict], kind: str, ttl: float, group: str = "") -> dict[int, str]:
        """Send each node its content; the message id of each, "" where it could not be sent."""
        messages = [
            Message(content, dst_node_id=node, message_type=kind, ttl=ttl, group_id=group)
            for node, content in contents.items()
        ]
        ids = list(self.grid.push_messages(messages)) or [""] * len(messages)
        return {node: message or "" for node, message in zip(contents, ids, strict=True)}

    def listen(self, messages: set[str], seconds: float) -> None:
        """Let the answers to these messages come to `replies`. One thread per call waits for them, so that a node that
        stalls in the middle of an answer holds up nobody else."""
        if messages:
            Thread(target=self.pull, args=(messages, time.monotonic() + seconds), daemon=True).start()

    def pull(self, waiting: set[str], until: float) -> None:
        begun = time.monotonic()
        try:
            while waiting and time.monotonic() < until:
                for message in self.grid.pull_messages(list(waiting)):
                    asked = message.metadata.reply_to_message_id
                    waiting.discard(asked)
                    self.replies.put((asked, content_of(message)))
                time.sleep(min(max(self.poll, 0.02 * (time.monotonic() - begun)), SLOWEST_POLL))
        except Exception as error:  # the SuperLink is gone, or speaks another language
            self.replies.put(error)

    def next(self, until: float) -> tuple[str, Reply] | None:
        """The next reply, or None when the time is up. Raises RunError if the SuperLink cannot be reached."""
        try:
            found = self.replies.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            return None
        if isinstance(found, Exception):
            raise RunError(f"the SuperLink does not answer ({type(found).__name__}: {found}): --resume goes on")
        return found


def content_of(message: Message) -> Reply:
    if message.has_error():
        return plain(f"{message.error.reason or 'Flower error'} (code {message.error.code})")
    return message.content


def name_of(_: int, fields: Mapping[str, Any]) -> str:
    """The name that a node gives itself. Raises ValueError where it gives none."""
    if not isinstance(name := fields.get("name"), str):
        raise ValueError("it does not say who it is")
    return name


def plain(text: str) -> str:
    """What somebody else wrote, for a log: one line, nothing that a terminal obeys, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * LONGEST_LINE]).split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …"


class Roster:
    """Which node is which client: asked once of every node, by name."""

    def __init__(self, grid: Grid, hello: RecordDict, log: Callable[[str], None], admit: Admit = name_of) -> None:
        self.grid, self.hello, self.log, self.admit = grid, hello, log, admit
        self.asked: set[int] = set()
        self.refused: dict[int, tuple[float, float]] = {}  # by node: when it is asked again, and the wait after that
        self.nodes: dict[str, int] = {}  # by name
        self.said: dict[str, dict[str, Any]] = {}  # what each said of itself when it last joined
        self.told: dict[int, str] = {}  # what was logged of a node

    def refresh(self, seconds: float) -> frozenset[int]:
        """Ask the nodes that are new; the ids of all that are connected."""
        connected, now = frozenset(self.grid.get_node_ids()), time.monotonic()
        waiting = {node for node, (due, _) in self.refused.items() if due > now}
        if new := connected - self.asked - waiting:
            self.asked |= new
            for node, reply in ask_all(
                self.grid, dict.fromkeys(sorted(new), self.hello), "query.join", seconds
            ).items():
                self.welcome(node, reply, connected)
        return connected

    def welcome(self, node: int, reply: Reply, connected: frozenset[int]) -> None:
        """Take a client in, or say why not; it may do better when it is asked again, a while later."""
        try:
            fields = understood(reply)
            name = self.admit(node, fields)
            if self.nodes.get(name, node) in connected - {node}:
                raise ValueError(f"it says that it is {name}, who is here already")
        except ValueError as error:
            wait = self.refused.get(node, (0.0, FIRST_WAIT))[1]
            self.refused[node] = (time.monotonic() + wait, min(2 * wait, LONGEST_WAIT))
            self.asked.discard(node)
            self.tell(node, f"node {node} did not join: {error}")
            return
        self.refused.pop(node, None)
        self.nodes[name], self.said[name] = node, fields

    def tell(self, node: int, line: str) -> None:
        """Log a line, unless it was the last one about this node."""
        if self.told.get(node) != (line := plain(line)):
            self.log(line)
            self.told[node] = line

    def find(self, names: Sequence[str]) -> dict[str, int]:
        """The nodes of these clients, of those that are connected; new nodes are asked if one of them is missing."""
        connected = frozenset(self.grid.get_node_ids())
        if not all(self.nodes.get(name) in connected for name in names):
            connected = self.refresh(BACK_SECONDS)
        return {name: self.nodes[name] for name in names if self.nodes.get(name) in connected}

    def gather(self, enough: Callable[[], bool], seconds: float) -> None:
        """Wait until enough clients have joined. Raises RunError when the time is up."""
        until, told = time.monotonic() + seconds, -1
        while True:
            self.refresh(min(ASK_SECONDS, seconds))
            if enough():
                return
            if len(self.nodes) != told:
                told = len(self.nodes)
                self.log(f"waiting for clients; here: {', '.join(sorted(self.nodes)) or 'none yet'}")
            if time.monotonic() > until:
                raise RunError(
                    f"only {len(self.nodes)} clients joined within {seconds:g} s: start the others, --resume"
                )
            time.sleep(1.0)


def understood(reply: Reply) -> dict[str, Any]:
    """The fields of a note. Raises ValueError with the reason where there are none."""
    if isinstance(reply, str):
        raise ValueError(reply)
    fields = fields_of(reply)
    if FAILURE in fields:
        raise ValueError(f"{plain(str(fields.get('name', '')))[:64]} says: {fields[FAILURE]}".removeprefix(" says: "))
    return fields


def ask_all(grid: Grid, contents: Mapping[int, RecordDict], kind: str, seconds: float) -> dict[int, Reply]:
    """Every node's reply, or why there is none."""
    questions = Questions(grid)
    sent = questions.ask(contents, kind, seconds)
    nodes = {message: node for node, message in sent.items() if message}
    replies: dict[int, Reply] = dict.fromkeys(contents, "no answer")
    until = time.monotonic() + seconds
    while nodes and (reply := questions.next(until)) is not None:
        if (node := nodes.pop(reply[0], None)) is not None:
            replies[node] = reply[1]
    return replies


class FlowerBackend(Backend):
    """Trains on the nodes of a grid.

    `names` has the name that each client joined under, by id; `contract` travels with every task. A round ends when
    all have answered, when `enough` usable answers are there, or after `deadline` seconds.
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
        """Flower ends the messages with the run."""

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
        """The message's id, "" where it could not be sent. It is kept so long that a late answer is put on record."""
        keep = DAY if self.deadline is None else self.deadline + GRACE
        return self.questions.send({node: content}, "train", keep, str(task.round))[node]

    def await_also(self, asked: Mapping[str, ClientTask]) -> None:
        """Listen for the answers to these messages, too; those of older rounds no longer."""
        rounds = [task.round for task in asked.values()]
        oldest = max(rounds, default=0) - LATE_ROUNDS
        self.awaited = {m: late for m, late in self.awaited.items() if late.round >= oldest} | dict(asked)
        keep = DAY if self.deadline is None else self.deadline + GRACE
        self.questions.listen(set(asked), keep)

    def answers(
        self, asked: dict[str, ClientTask], sizes: Mapping[int, int], until: float
    ) -> Iterator[ClientUpdate | ClientFailure]:
        """What comes back, until all of `asked` have answered, enough usable answers are there, or the time is up."""
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
        """What a reply says, held against the task that it answers."""
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
