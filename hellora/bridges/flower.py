"""Hellora as a strategy of Flower's: in a ServerApp of somebody's own, with ClientApps of their own.

Messages are plain Flower records under the names of the model's own parameters, so clients need no hellora:

    query.join   →  {}
                 ←  "budget": name, num-examples, layers, rank (the last two where there is a limit)
    train        →  "arrays": the client's part of the adapter; "config": the ServerApp's, server-round, and `train`:
                    the names of the arrays that this client trains in this round
                 ←  an ArrayRecord of these arrays, trained; a MetricRecord with num-examples
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from hellora.backends.records import num_bytes
from hellora.backends.roster import Reply, Roster, content_of, plain
from hellora.backends.wire import most_bytes, unflatten
from hellora.bridges.arrays import Naming
from hellora.bridges.joining import EXAMPLES, admitted, profile_of, said
from hellora.bridges.methods import check_method, check_task
from hellora.core.errors import RunError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, TrainSettings
from hellora.core.state import ServerState
from hellora.core.types import Adapter, ClientProfile
from hellora.experiments.config import read_experiment
from hellora.methods.sharing import answer_part, is_of
from hellora.methods.strategies import Answers
from hellora.server.backend import Backend, Order
from hellora.server.federation import Federation
from hellora.server.rounds import heard, ordered, settled

TRAIN = "train"  # the key that names what a client trains
JOIN_SECONDS = 3600.0  # that a run waits for its clients

ScoreLayers = Callable[[ArrayRecord], npt.ArrayLike]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class LoraStrategy(Strategy):
    """Decides who trains which LoRA layers at which rank, sends each client its part, and merges the unequal updates.

    Args:
        source: a preset or an experiment file, of which [method], [server], [guard], `seed`, `cohort` and `min_clients`
            count; model, data and training are the apps' own
        settings: what to change in it, `{"section.key": value}`
        clients: how many must have joined before the first round; these take part
        layer_scores: what each layer of the adapter is worth, (layers,), of the server's arrays; for allocators that
            score layers, such as fed_hello
        log: where lines for a person go

    Raises:
        InputError: a setting is wrong, or the method needs more of clients than their own training.

    Examples:
        strategy = LoraStrategy("random_layers", {"cohort": 4}, clients=8)
        result = strategy.start(grid, ArrayRecord(adapter), num_rounds=10)
    """

    def __init__(
        self,
        source: str,
        settings: Mapping[str, Any] | None = None,
        *,
        clients: int,
        layer_scores: ScoreLayers | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.experiment = read_experiment(source, settings, simulated=False)
        check_method(self.experiment, layer_scores is not None)
        self.clients, self.layer_scores, self.log = clients, layer_scores, log

    def summary(self) -> None:
        """Log which method is used."""
        named = self.experiment.table["method"]
        self.log(f"{self.experiment.name}: {named['allocator']} → {named['dispatcher']} → {named['aggregator']}")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Wait for the clients, and run the rounds as every strategy of Flower's does.

        Args:
            grid: Flower's grid
            initial_arrays: the adapter at the largest rank, by the names of the model's parameters, and what else is
                trained; in the order of the model, as float32
            num_rounds: how many rounds
            timeout: seconds that a round waits for its clients
            train_config: what clients are told besides in every round
            evaluate_config: not used, for clients of a smaller rank cannot load the server's arrays
            evaluate_fn: evaluates the server's arrays, before the first round and after each

        Raises:
            InputError: the arrays are no adapter, or the method cannot serve it.
            RunError: too few clients joined within an hour.
        """
        tensors = initial_arrays.to_torch_state_dict()
        self.naming = Naming.of(tensors)
        self.roster = Roster(grid, RecordDict(), self.log, admitted, said)
        self.roster.gather(lambda: len(self.roster.nodes) >= self.clients, JOIN_SECONDS, "start the others")
        self.names = sorted(self.roster.nodes)
        self.run = self.federation(num_rounds)
        self.lent = None if self.layer_scores is None else Scored(self.naming, self.layer_scores)
        self.state = ServerState(0, self.naming.adapter(tensors))
        return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)

    def federation(self, rounds: int) -> Federation:
        """Return the constants of the run, of the clients that have joined."""
        run, guard = self.experiment.run, self.experiment.guard
        fleet = (profile_of(client, self.roster.said[name]) for client, name in enumerate(self.names))
        return Federation(
            spec=self.naming.spec,
            fleet=tuple(fleet),
            method=self.experiment.method,
            rounds=rounds,
            cohort=run.cohort,
            seed=run.seed,
            train=TrainSettings(),
            min_clients=run.min_clients,
            attempts=1,
            simulated=False,
            max_norm=None if guard.max_norm == "off" else guard.max_norm,
            max_weight=None if guard.max_weight == "off" else guard.max_weight,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Allocate, and make each client's message. Raise InputError where its own code could not follow."""
        state = replace(self.state, adapter=self.naming.adapter(arrays.to_torch_state_dict()))
        self.outbox, self.states = ordered(state, self.run, self.lent)
        nodes = self.roster.find([self.names[order.client] for order in self.outbox.orders])
        self.nodes = {nodes[name]: client for client, name in enumerate(self.names) if name in nodes}
        contents = {
            node: self.content(self.outbox.task(client), config, server_round) for node, client in self.nodes.items()
        }
        return [Message(content, dst_node_id=node, message_type="train") for node, content in contents.items()]

    def content(self, task: ClientTask, config: ConfigRecord, server_round: int) -> RecordDict:
        """Return what a client is sent: its part of the adapter, and which arrays of it to train."""
        check_task(task, self.run.spec)
        told = ConfigRecord({**config, "server-round": server_round, TRAIN: list(self.to_train(task))})
        return RecordDict({"arrays": ArrayRecord(self.naming.arrays(task.adapter)), "config": told})

    def to_train(self, task: ClientTask) -> dict[str, str]:
        """Return the arrays that a client trains and sends back: our names by theirs."""
        flat = answer_part(task, self.run.spec).tensors()
        return {self.naming.theirs[name]: name for name in flat if is_of(name, task.factors)}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the answers and merge them; without enough of them the adapter stays as it is."""
        backend = Replies(self, list(replies))
        tried = heard(self.outbox, self.states, backend)
        tried, after, _ = settled(self.run, self.outbox.state, tried, backend, self.lent, lambda _: "")
        for failure in tried.gathered.failures:
            self.log(f"round {server_round}: {self.names[failure.client]} is {failure.kind}: {failure.reason}")
        if after is None:
            self.log(
                f"round {server_round} has too few updates, min_clients is {self.run.min_clients}: nothing changes"
            )
            self.state = replace(self.outbox.state, round=self.outbox.state.round + 1)
            return None, None
        self.state = after
        return ArrayRecord(self.naming.arrays(after.adapter)), mean_metrics(tried.gathered.answers)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: clients of a smaller rank cannot load the server's arrays; `evaluate_fn` of `start` can."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None


@dataclass(frozen=True, eq=False)
class Replies(Backend):
    """The replies to a round's messages, in the place of clients that are waited for."""

    strategy: LoraStrategy
    messages: Sequence[Message]

    def clients(self) -> Sequence[ClientProfile]:
        return self.strategy.run.fleet

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        absent = {order.client for order in orders} - set(self.strategy.nodes.values())
        yield from (ClientFailure(client, "missing", "not connected") for client in sorted(absent))
        for message in self.messages:
            if (client := self.strategy.nodes.get(message.metadata.src_node_id)) is not None:
                yield self.answer(self.strategy.outbox.task(client), content_of(message))

    def answer(self, task: ClientTask, reply: Reply) -> ClientUpdate | ClientFailure:
        """Read what a client says to its task."""
        if isinstance(reply, str):
            return ClientFailure(task.client, "missing", reply)
        try:
            return self.update(task, reply)
        except Exception as error:  # a client may send anything
            why = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return ClientFailure(task.client, "rejected", plain(f"its answer cannot be read: {why}"))

    def update(self, task: ClientTask, reply: RecordDict) -> ClientUpdate:
        """Return the update that an answer is. Raise ValueError where it is none."""
        sent = answer_part(task, self.strategy.run.spec)
        if (arrived := num_bytes(reply)) > (limit := most_bytes(task, sent)):
            raise ValueError(f"it has {arrived} bytes, at most {limit} are read")
        if (len(reply.array_records), len(reply.metric_records)) != (1, 1):
            raise ValueError("it must have one ArrayRecord and one MetricRecord")
        ((arrays,), (metrics,)) = reply.array_records.values(), reply.metric_records.values()
        trained = self.strategy.to_train(task)
        if wrong := sorted(arrays.keys() ^ trained.keys()):
            raise ValueError(f"array {wrong[0]} is {'not asked for' if wrong[0] in arrays else 'absent'}")
        flat = {trained[name]: tensor for name, tensor in arrays.to_torch_state_dict().items()}
        flat |= {name: tensor for name, tensor in sent.tensors().items() if not is_of(name, task.factors)}
        adapter = unflatten(flat, {name: pair.scale for name, pair in sent.pairs.items()})
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        return ClientUpdate(task.round, task.client, int(numbers.pop(EXAMPLES, 0)), adapter, numbers)


@dataclass(frozen=True)
class Scored:
    """The server's model, as far as an allocator asks for it: somebody's own function scores the layers."""

    naming: Naming
    score: ScoreLayers

    def layer_scores(self, adapter: Adapter) -> npt.NDArray[np.float64]:
        found = np.asarray(self.score(ArrayRecord(self.naming.arrays(adapter))), dtype=np.float64)
        if found.shape != (self.naming.spec.num_layers,) or not np.isfinite(found).all():
            raise RunError(f"layer_scores gave {found}: it must return a number for each of {self.naming.spec.layers}")
        return found

    def distil(self, *_: object) -> Any:
        raise RunError("no prototypes are distilled in a Flower app of one's own")  # `check_method` refuses the method


def mean_metrics(answers: Answers) -> MetricRecord:
    """Return the mean of what clients measured, by their examples, and of how many it is."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _, update in answers:
        for name, value in update.metrics.items():
            found.setdefault(name, []).append((update.weight, value))
    means = {name: sum(w * v for w, v in pairs) / sum(w for w, _ in pairs) for name, pairs in found.items()}
    return MetricRecord({**means, "num-updates": len(answers)})
