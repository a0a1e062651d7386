"""Floor 5: from an experiment and the clients behind a Flower grid to what a run is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp import Grid

from hellora.backends.flower import ASK_SECONDS, FlowerBackend, Roster, ask_all, understood
from hellora.backends.records import hello_of
from hellora.client import ClientWork
from hellora.config import Experiment
from hellora.data.sides import Classes, agreed, server_corpus
from hellora.deployment.participant import Contract
from hellora.errors import InputError, RunError
from hellora.experiment import (
    Setup,
    bypass_check,
    device_check,
    devices,
    federation,
    head_check,
    planner_of,
    prepare,
    rehearse,
)
from hellora.runs import Record
from hellora.seeds import seed_for
from hellora.settings import FleetSettings
from hellora.types import Budget, ClientProfile

JOIN_SECONDS = 3600.0  # that a new run waits for its clients
REJOIN_SECONDS = 60.0  # that a resumed run waits for all of them, if it can do without some
LOAD_SECONDS = 3600.0  # that clients may take to load the model, which they may have to download first
Log = Callable[[str], None]


@dataclass(frozen=True)
class SimulatedOnFlower:
    """Clients that Flower's engine simulates; each process of it prepares the experiment by itself."""

    grid: Grid
    log: Log = print

    def prepare(self, experiment: Experiment, record: Record) -> Setup:
        setup = prepare(experiment)
        contract = Contract(experiment.name, experiment.table).to_json()
        names = [str(client) for client in range(experiment.data.clients)]
        roster = Roster(self.grid, hello_of(contract), self.log)
        roster.gather(lambda: roster.nodes.keys() >= set(names), ASK_SECONDS)

        def connect(setup: Setup) -> FlowerBackend:
            setup.base.to(devices(experiment.compute.device)[0])
            run = setup.federation
            return FlowerBackend(roster, names, run.fleet, setup.base.spec, contract, run.wire)

        return replace(setup, connect=connect)


@dataclass(frozen=True)
class Deployed:
    """Clients elsewhere, each with its own data. The server has data to test on, and none of theirs."""

    grid: Grid
    log: Log = print

    def prepare(self, experiment: Experiment, record: Record) -> Setup:
        """Wait for the clients, agree on the classes, and let all sides load the model.

        Raises:
            InputError: a setting, the server's data or a client's do not fit; nothing has been trained.
            RunError: too few clients joined.
        """
        check_deployed(experiment)
        if experiment.fleet != FleetSettings():
            self.log("[fleet] is for simulations: here every client brings its own budget")
        device_check(experiment.compute.device)
        roster = Roster(self.grid, hello_of(Contract(experiment.name, experiment.table).to_json()), self.log)
        said = self.gather(experiment, roster, record.get("clients", {}))
        classes = classes_of(list(said.values()))
        seed, task = experiment.run.seed, experiment.task
        corpus = server_corpus(experiment.data, task.columns, seed_for(seed, "data"), classes)
        head_check(experiment, corpus)
        if experiment.method.allocator.needs_proxy and not len(corpus.proxy):
            raise InputError(
                "data.proxy: the allocator scores layers on proxy data, and the server has none: name some"
            )
        base = task.load(experiment.model, corpus.labels, seed_for(seed, "head"))
        contract = Contract(experiment.name, experiment.table, classes, base.fingerprint()).to_json()
        self.load(roster, contract, said)
        profiles = tuple(profile(client, fields) for client, fields in enumerate(said.values()))
        planner = None
        if experiment.method.allocator.needs_planner or any(map(is_limited, profiles)):
            bare = task.load(experiment.model, corpus.labels, 0, weights=False)
            planner = planner_of(experiment, bare, max(fields["longest"] for fields in said.values()))
        run = federation(experiment, base, profiles, planner, simulated=False)
        rehearse(run, 0)
        if experiment.method.dispatcher.bypasses:
            bypass_check(base, task, corpus.test.select([0]))
        names, enough = list(said), run.cohort if run.spares else None

        def connect(_: Setup) -> FlowerBackend:
            base.to(devices(experiment.compute.device)[0])
            return FlowerBackend(roster, names, profiles, base.spec, contract, run.wire, run.deadline, enough)

        return Setup(experiment, corpus, ClientWork(base, task, corpus.test, None), run, [], connect, said)

    def gather(self, experiment: Experiment, roster: Roster, before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What each client of the run said of itself, by name, in the order of ids; of one that does not come back,
        what it said when the run began."""
        if not before:
            count = experiment.data.clients
            roster.gather(lambda: len(roster.nodes) >= count, JOIN_SECONDS)
            names = sorted(roster.nodes)
            if names[count:]:
                self.log(f"data.clients = {count}, so these are left out: {', '.join(names[count:])}")
            return {name: roster.said[name] for name in names[:count]}
        try:
            roster.gather(lambda: roster.nodes.keys() >= before.keys(), REJOIN_SECONDS)
        except RunError:
            if len(roster.nodes.keys() & before.keys()) < experiment.run.min_clients:
                raise
        return {name: {**before[name], **roster.said.get(name, {})} for name in before}

    def load(self, roster: Roster, contract: str, said: dict[str, dict[str, Any]]) -> None:
        """Let all clients that are here load data and model; notes in `said` how long their longest example is."""
        here = {roster.nodes[name]: name for name in said if name in roster.nodes}
        self.log(f"{', '.join(here.values())}: loading data and model …")
        problems = []
        for node, reply in ask_all(
            self.grid, dict.fromkeys(here, hello_of(contract)), "query.prepare", LOAD_SECONDS
        ).items():
            try:
                said[here[node]]["longest"] = int(understood(reply)["longest"])
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"client {here[node]}: {error}")
        if problems:
            raise InputError("; ".join(problems))


def check_deployed(experiment: Experiment) -> None:
    """Refuse what needs all data in one place, or would send away what is to stay with a client."""
    data, method = experiment.data, experiment.method
    if data.validation or data.max_examples is not None:
        raise InputError(
            "data.validation and data.max_examples cut the training data, which the server of a deployment does not "
            "have: remove them"
        )
    if method.personal or method.shares != "both":
        raise InputError(
            "method.head = 'local' and method.shares keep tensors with a client, which a deployment cannot do yet: "
            "simulate this method, or share everything"
        )


def classes_of(said: Sequence[Mapping[str, Any]]) -> Classes | None:
    """The classes that clients agree on. Raises InputError where only some have labels."""
    lists = [fields["classes"] for fields in said]
    if not any(lists):
        return None
    if not all(lists):
        raise InputError("data.label: some clients' data have labels and others' have none: mend their data")
    return agreed([Classes(tuple(c["values"]), tuple(c["present"]), bool(c["declared"])) for c in lists])


def profile(client: int, fields: Mapping[str, Any]) -> ClientProfile:
    """A client as it described itself."""
    budget = dict(fields["budget"])
    if isinstance(budget["rank"], list):
        budget["rank"] = tuple(budget["rank"])
    return ClientProfile(client, int(fields["examples"]), Budget(**budget), fields["speed"], fields["link"], 1.0)


def is_limited(client: ClientProfile) -> bool:
    """True if its budget is more than layers and ranks."""
    budget = client.budget
    return any(limit is not None for limit in (budget.memory_bytes, budget.seconds, budget.uplink_bytes))
