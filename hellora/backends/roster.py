"""Put questions to the nodes of a Flower grid, and find out which node is which client.

A node says itself who it is when it is asked ("query.join"): node ids name nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from hellora.backends.records import FAILURE, fields_of
from hellora.core.errors import RunError

POLL_SECONDS, SLOWEST_POLL = 0.2, 5.0  # between looks for answers: 2 % of the time waited, between these
ASK_SECONDS = 120.0  # for a node to say who it is; it may be busy with an older task, and is asked again
BACK_SECONDS = 30.0  # the same within a round, where a client of it is not there

FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  # seconds before a node that could not join is asked again
LONGEST_LINE = 500  # characters that are shown of what a client says

Reply = RecordDict | str  # or why there is none
Admit = Callable[[int, Mapping[str, Any]], str]  # (node, what it says of itself): its name; ValueError: not that way


@dataclass
class Questions:
    """Questions are messages on their way; `replies` has what came back."""

    grid: Grid
    poll: float = POLL_SECONDS
    replies: "SimpleQueue[tuple[str, Reply] | Exception]" = field(default_factory=SimpleQueue)

    def ask(self, contents: Mapping[int, RecordDict], kind: str, ttl: float) -> dict[int, str]:
        """Send each node its content, and listen; return the message id of each, "" where it could not be sent."""
        sent = self.send(contents, kind, ttl)
        self.listen({message for message in sent.values() if message}, ttl)
        return sent

    def send(self, contents: Mapping[int, RecordDict], kind: str, ttl: float, group: str = "") -> dict[int, str]:
        """Send each node its content; return the message id of each, "" where it could not be sent."""
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
        """Return the next reply, or None when the time is up. Raise RunError if the SuperLink cannot be reached."""
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
    """Return the name that a node gives itself. Raise ValueError where it gives none."""
    if not isinstance(name := fields.get("name"), str):
        raise ValueError("it does not say who it is")
    return name


def plain(text: str) -> str:
    """Make what somebody else wrote fit for a log: one line, nothing that a terminal obeys, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * LONGEST_LINE]).split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …"


class Roster:
    """A roster knows which node is which client, by name; it asks every node once."""

    def __init__(
        self,
        grid: Grid,
        hello: RecordDict,
        log: Callable[[str], None],
        admit: Admit = name_of,
        read: "Callable[[Reply], dict[str, Any]] | None" = None,
    ) -> None:
        self.grid, self.hello, self.log, self.admit = grid, hello, log, admit
        self.read = read or understood  # what a node says of itself; ValueError: it says nothing of use
        self.asked: set[int] = set()
        self.refused: dict[int, tuple[float, float]] = {}  # by node: when it is asked again, and the wait after that
        self.nodes: dict[str, int] = {}  # by name
        self.said: dict[str, dict[str, Any]] = {}  # what each said of itself when it last joined
        self.told: dict[int, str] = {}  # what was logged of a node

    def refresh(self, seconds: float) -> frozenset[int]:
        """Ask the nodes that are new who they are; return the ids of all that are connected."""
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
            fields = self.read(reply)
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
        """Find the nodes of these clients among the connected ones; ask new nodes if one of them is missing."""
        connected = frozenset(self.grid.get_node_ids())
        if not all(self.nodes.get(name) in connected for name in names):
            connected = self.refresh(BACK_SECONDS)
        return {name: self.nodes[name] for name in names if self.nodes.get(name) in connected}

    def gather(self, enough: Callable[[], bool], seconds: float, advice: str = "start the others, --resume") -> None:
        """Wait until enough clients have joined. Raise RunError, with advice, when the time is up."""
        until, told = time.monotonic() + seconds, -1
        while True:
            self.refresh(min(ASK_SECONDS, seconds))
            if enough():
                return
            if len(self.nodes) != told:
                told = len(self.nodes)
                self.log(f"waiting for clients; here: {', '.join(sorted(self.nodes)) or 'none yet'}")
            if time.monotonic() > until:
                raise RunError(f"only {len(self.nodes)} clients joined within {seconds:g} s: {advice}")
            time.sleep(1.0)


def understood(reply: Reply) -> dict[str, Any]:
    """Return the fields of a note. Raise ValueError with the reason where there are none."""
    if isinstance(reply, str):
        raise ValueError(reply)
    fields = fields_of(reply)
    if FAILURE in fields:
        raise ValueError(f"{plain(str(fields.get('name', '')))[:64]} says: {fields[FAILURE]}".removeprefix(" says: "))
    return fields


def ask_all(grid: Grid, contents: Mapping[int, RecordDict], kind: str, seconds: float) -> dict[int, Reply]:
    """Ask every node; return its reply, or why there is none."""
    questions = Questions(grid)
    sent = questions.ask(contents, kind, seconds)
    nodes = {message: node for node, message in sent.items() if message}
    replies: dict[int, Reply] = dict.fromkeys(contents, "no answer")
    until = time.monotonic() + seconds
    while nodes and (reply := questions.next(until)) is not None:
        if (node := nodes.pop(reply[0], None)) is not None:
            replies[node] = reply[1]
    return replies
