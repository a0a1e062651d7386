"""A Flower grid in this process: real messages and records, the real client app, no engine between them."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from hellora.deployment.flower_app import client

Spoil = Callable[[Message, Message], Message | list[Message] | None]  # (asked, answer): what arrives instead


class FakeGrid(Grid):
    """Nodes with these configurations; `spoil` may change an answer, or keep it back."""

    def __init__(
        self, configs: Mapping[int, Mapping[str, Any]], app: ClientApp = client, spoil: Spoil = lambda _, answer: answer
    ) -> None:
        self.configs, self.app, self.spoil = dict(configs), app, spoil
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # the engine sets them
        self.asked: list[Message] = []
        self.answers: dict[str, Message | list[Message]] = {}
        self.ids = itertools.count()

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.configs)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.configs]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            name = f"message {next(self.ids)}"
            message.metadata.__dict__["_message_id"] = name
            self.asked.append(message)
            sent.append(name)
            node = message.metadata.dst_node_id
            context = Context(1, node, dict(self.configs[node]), RecordDict(), {})
            answer = self.spoil(message, self.app(message, context))
            if answer is not None:
                self.answers[name] = answer
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found: list[Message] = []
        for name in list(message_ids):
            answer = self.answers.pop(name, [])
            found += answer if isinstance(answer, list) else [answer]
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
