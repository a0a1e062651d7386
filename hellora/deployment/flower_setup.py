"""From an experiment and the clients behind a Flower grid, make what a run consists of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.serverapp import Grid

from hellora.backends.flower import FlowerBackend
from hellora.backends.records import hello_of
from hellora.backends.roster import ASK_SECONDS, Roster, ask_all, plain, understood
from hellora.client.work import ClientWork
from hellora.core.errors import InputError, RunError
from hellora.core.seeds import seed_for
from hellora.core.types import ClientProfile
from hellora.data.sides import Classes, agreed, server_corpus
from hellora.deployment.joining import MOST_CLASSES, Said, owner_of, understood_join
from hellora.deployment.participant import Contract
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import device_check, devices
from hellora.experiments.prepare import assemble, check_corpus, load_base, prepare
from hellora.experiments.settings import FleetSettings
from hellora.experiments.setup import Setup
from hellora.runs.run import Record
from hellora.tasks import length_limit

JOIN_SECONDS = 3600.0  # that a new run waits for its clients
REJOIN_SECONDS = 60.0  # that a resumed run waits for all of them, if it can do without some
LOAD_SECONDS = 3600.0  # that clients may take to load the model, which they may have to download first
Log = Callable[[str], None]


@dataclass(frozen=True)
class SimulatedOnFlower:
    """Prepares clients that Flower's engine simulates; each process of it prepares the experiment by itself."""

    grid: Grid
    log: Log = print

    def prepare(self, experiment: Experiment, record: Record) -> Setup:
        setup = prepare(experiment)
        contract = contract_of(experiment).to_json()
        names = [str(client) for client in range(len(setup.federation.fleet))]
        roster = Roster(self.grid, hello_of(contract), self.log)
        roster.gather(lambda: roster.nodes.keys() >= set(names), ASK_SECONDS)

        def connect(setup: Setup) -> FlowerBackend:
            setup.base.to(devices(experiment.compute.device)[0])
            run = setup.federation
            return FlowerBackend(roster, names, run.fleet, setup.base.spec, contract, run.wire)

        return replace(setup, connect=connect)


@dataclass(frozen=True)
class Deployed:
    """Prepares clients elsewhere, each with its own data. The server has data to test on, and none of theirs."""

    grid: Grid
    log: Log = print
    admitted: Path | None = None  # the server's record of whose key belongs to which node; None: keys are not used

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
        most = max(MOST_CLASSES, experiment.model.classes or 0)
        hello = contract_of(experiment).to_json()
        roster = Roster(self.grid, hello_of(hello), self.log, partial(self.admit, most=most))
        said = self.gather(experiment, roster, record.get("clients", {}))
        who = {name: understood_join(fields, most) for name, fields in said.items()}
        classes = classes_of(list(who.values()))
        kind = experiment.task
        corpus = server_corpus(experiment.data, kind.columns, seed_for(experiment.run.seed, "data"), classes)
        told = [each.number_sums() for each in who.values()]
        experiment = experiment.with_task(kind.fitted(told, corpus.labels))
        kind = experiment.task
        check_corpus(experiment, corpus)
        base = load_base(experiment, corpus)
        run_id = record.get("run") or uuid4().hex
        contract = contract_of(experiment, classes, base.fingerprint(), run_id).to_json()
        self.load(roster, contract, said, length_limit(base, kind.max_tokens))
        profiles = profiles_of(who, said)
        return assemble(
            experiment,
            corpus,
            ClientWork(base, kind, corpus.test, None, experiment.method.local_training, experiment.method.start),
            profiles,
            tokens=lambda: max(fields["longest"] for fields in said.values()),
            planned=any(map(is_limited, profiles)),
            connect=partial(connected, roster, list(said), contract),
            held_out=[],
            clients=said,
            run_id=run_id,
        )

    def admit(self, node: int, fields: Mapping[str, Any], most: int) -> str:
        """Return the name of a node of at most `most` classes. Raise ValueError where the name is not its own: with
        keys, that is one that the server knows no key of, too.
        """
        name = understood_join(fields, most).name
        if self.admitted is not None and (owner := owner_of(node, self.admitted)) != name:
            whose = "a key of nobody that this server knows" if owner is None else f"the key of {owner}"
            raise ValueError(f"it says that it is {name}, with {whose}")
        return name

    def gather(self, experiment: Experiment, roster: Roster, before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return what each client of the run said of itself, by name, in the order of ids; of one that does not come
        back, what it said when the run began.
        """
        if not before:
            count = experiment.data.num_clients
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
        for name in before.keys() & roster.said.keys():
            was, now = before[name], roster.said[name]
            if was["classes"] != now["classes"]:
                raise InputError(
                    f"client {name}: its data has other classes than when the run began: give it those data"
                )
            if was["examples"] != now["examples"]:
                self.log(f"{name} had {was['examples']} examples when the run began, and has {now['examples']} now")
        return {name: {**before[name], **roster.said.get(name, {})} for name in before}

    def load(self, roster: Roster, contract: str, said: dict[str, dict[str, Any]], limit: int) -> None:
        """Let all clients that are here load data and model; note in `said` how long their longest row is, in tokens,
        at most `limit`, and how many rows each packed its examples into, None where it did not.
        """
        here = {roster.nodes[name]: name for name in said if name in roster.nodes}
        self.log(f"{', '.join(here.values())}: loading data and model …")
        problems = []
        for node, reply in ask_all(
            self.grid, dict.fromkeys(here, hello_of(contract)), "query.prepare", LOAD_SECONDS
        ).items():
            try:
                found = understood(reply)
                longest, rows = found.get("longest"), found.get("rows")
                if type(longest) is not int or not 1 <= longest <= limit:
                    raise ValueError(f"its longest example has {longest!r} tokens, of at most {limit}")
                if rows is not None and (type(rows) is not int or not 1 <= rows <= said[here[node]]["examples"]):
                    raise ValueError(f"it has {rows!r} packed rows of {said[here[node]]['examples']} examples")
                said[here[node]] = {**said[here[node]], "longest": longest, "rows": rows}
            except ValueError as error:
                problems.append(plain(f"client {here[node]}: {error}"))
        if problems:
            raise InputError("; ".join(problems))


def contract_of(
    experiment: Experiment, classes: Classes | None = None, base: str | None = None, run_id: str = ""
) -> Contract:
    """Make the contract of an experiment. What the server's evaluations are measured by is no part of it."""
    table = {**experiment.table, "task": {**experiment.table["task"], "metrics": []}}
    return Contract(experiment.name, table, classes, base, run_id)


def profiles_of(who: Mapping[str, Said], said: Mapping[str, Mapping[str, Any]]) -> tuple[ClientProfile, ...]:
    """Make the profiles of all clients, by id, of what each said, and of how many rows it packed its examples into."""
    return tuple(
        replace(each.profile(client), num_rows=said[name].get("rows"))
        for client, (name, each) in enumerate(who.items())
    )


def connected(roster: Roster, names: Sequence[str], contract: str, setup: Setup) -> FlowerBackend:
    """Connect the clients of these names, by id; the server's own model goes to its device."""
    run = setup.federation
    setup.base.to(devices(setup.experiment.compute.device)[0])
    enough = run.cohort if run.spares else None
    return FlowerBackend(roster, names, run.fleet, setup.base.spec, contract, run.wire, run.deadline, enough)


def check_deployed(experiment: Experiment) -> None:
    """Refuse what needs all data in one place."""
    if experiment.data.max_examples is not None:
        raise InputError(
            "data.max_examples cuts the training data, which the server of a deployment does not have: remove it"
        )
    if experiment.stop.asked and experiment.method.personal:
        raise InputError(
            "stop: clients of a deployment measure models of their own by themselves, and the server has nothing to "
            "end a run by: remove [stop]"
        )


def classes_of(who: Sequence[Said]) -> Classes | None:
    """Return the classes that clients agree on. Raise InputError where only some have labels."""
    known = [classes for each in who if (classes := each.own_classes()) is not None]
    if known and len(known) < len(who):
        raise InputError("data.label: some clients' data have labels and others' have none: mend their data")
    return agreed(known) if known else None


def is_limited(client: ClientProfile) -> bool:
    """Tell whether the client's budget is more than layers and ranks."""
    budget = client.budget
    return any(limit is not None for limit in (budget.memory_bytes, budget.seconds, budget.uplink_bytes))
