"""A client takes part in a federation over a network: it says what it is, and trains.

It keeps the base model, loaded once, for as long as its process lives. All that it needs besides its own data comes
with every message (`Contract`), so that a process that was started anew can go on.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hellora.backends.wire import pack_answer, unpack_task
from hellora.budgets.planner import Estimate, Planner
from hellora.client.features import asked_for, targets_of
from hellora.client.own_part import attempt_with_own
from hellora.client.work import ClientWork
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, Named
from hellora.core.types import ClientProfile
from hellora.core.version import __version__
from hellora.data.forms import holds_turns
from hellora.data.server_data import fingerprint
from hellora.data.sides import Classes, own_classes, own_split, read_own
from hellora.deployment.kept import KeptTensors
from hellora.deployment.own_limits import check_columns, check_labels, check_model, contradiction
from hellora.deployment.own_model import Owner, OwnModel
from hellora.deployment.own_settings import OwnSettings
from hellora.experiments.config import check
from hellora.experiments.devices import parse_link
from hellora.experiments.experiment import Experiment
from hellora.experiments.holding_out import TrainingRows, num_held_out
from hellora.experiments.machine import cores, device_check, devices, threads
from hellora.experiments.own_code import refuse_unnamed_code
from hellora.experiments.planning import make_planner
from hellora.experiments.prepare import prepare
from hellora.experiments.sections import override
from hellora.model.origin import Origin
from hellora.record.atomic import write_atomically


@dataclass(frozen=True)
class Contract:
    """All clients of a run agree on a contract: the experiment with every default written out, and the classes.

    `base` is the fingerprint of the server's base model. Classes and base are not known when clients join.
    """

    name: str
    table: Mapping[str, Any]
    classes: Classes | None = None
    base: str | None = None
    run: str = ""  # the run's id, under which a client keeps tensors of its own
    version: str = __version__  # of the server's hellora

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Contract":
        fields = json.loads(text)
        if (theirs := fields.get("version", "an older one")) != __version__:
            raise InputError(f"hellora {__version__} is installed here, and {theirs} at the server: install the same")
        classes = fields.pop("classes")
        if classes is not None:
            classes = Classes(tuple(classes["values"]), tuple(classes["present"]), classes["declared"])
        return Contract(classes=classes, **fields)

    @property
    def experiment(self) -> Experiment:
        return check(self.name, self.table, simulated=False)


class Participant(ABC):
    """Takes part as a client, or in a simulation as all of them, in one process."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.contract: Contract | None = None  # whose base model is loaded
        self.work: ClientWork | None = None

    @abstractmethod
    def join(self, contract: Contract) -> dict[str, Any]:
        """Return what the client says of itself; nothing of its data but its size, its classes, sums of its numbers."""

    @abstractmethod
    def load(self, contract: Contract, experiment: Experiment) -> ClientWork:
        """Load data and model. Raise InputError where they do not fit."""

    @abstractmethod
    def settled(self, contract: Contract) -> Experiment:
        """Return the contract's experiment, as this client carries it out."""

    def ready(self, contract: Contract) -> ClientWork:
        """Return the work of a contract, loaded if it was not."""
        if self.work is None or contract != self.contract:
            started, self.work, self.contract = time.perf_counter(), None, None  # the old one is freed first
            experiment = self.settled(contract)
            torch.set_num_threads(threads(experiment))
            work = self.load(contract, experiment)
            if contract.base not in (None, work.base.fingerprint()):
                raise InputError(
                    f"model.name: {experiment.model.name} has other weights here than at the server: "
                    f"give this client the same model"
                )
            work.base.to(devices(experiment.compute.device)[0])
            work.warm_up()
            self.work, self.contract = work, contract
            self.log(f"loaded {experiment.model.name} in {time.perf_counter() - started:.1f} s")
        return self.work

    def prepare(self, contract: Contract) -> dict[str, Any]:
        """Load everything; return the longest row in tokens (1 where they have no length), and how many it packs."""
        work = self.ready(contract)
        return {"longest": work.row_tokens, "rows": work.rows(0)}

    def train(self, contract: Contract, data: bytes) -> bytes:
        """Answer a packed task, packed."""
        work, task = self.ready(contract), unpack_task(data)
        started = time.perf_counter()
        self.log(f"round {task.round}: training")
        answer = self.attempt(work, contract, task)
        trained = f"trained in {time.perf_counter() - started:.1f} s"
        self.log(f"round {task.round}: {answer.reason if isinstance(answer, ClientFailure) else trained}")
        return pack_answer(answer, task, work.base.spec, contract.experiment.wire.format)

    def attempt(self, work: ClientWork, contract: Contract, task: ClientTask) -> ClientUpdate | ClientFailure:
        """Train. What the client keeps came with the task, and goes back with the answer to a simulation's server."""
        return work.attempt(task)


class Simulated(Participant):
    """Takes part as every client of an experiment, with its part of the experiment's own data."""

    def join(self, contract: Contract) -> dict[str, Any]:
        return {}

    def settled(self, contract: Contract) -> Experiment:
        return contract.experiment

    def load(self, contract: Contract, experiment: Experiment) -> ClientWork:
        return prepare(experiment).work


class WithOwnData(Participant):
    """Takes part as one client with its own data, device and budget."""

    def __init__(self, own: OwnSettings, log: Callable[[str], None]) -> None:
        super().__init__(log)
        device_check(own.device)
        self.own, self.limits = own, own.limits  # before anything is loaded
        self.planner: tuple[Contract, Planner] | None = None  # of the contract for which it was made

    def settled(self, contract: Contract) -> Experiment:
        """Put this client's data, device and model in place of the server's. Public data stays in the settings, for
        methods that need it, and unread.

        Raises:
            InputError: the run names a column, a model or code that this client has not named.
        """
        here = {key: value for key, value in contract.table.items() if key != "tracking"}  # trackers are the server's
        refuse_unnamed_code(here, self.own.allow, "client: the server")
        table = {**contract.table, "data": {**contract.table["data"], "proxy": "", "subset": ""}}
        mine: dict[str, Any] = {f"data.{key}": value for key, value in self.own.data.items()}
        mine["compute.device"] = self.own.device
        if self.own.model is not None:
            mine["model.name"] = self.own.model
        experiment = check(contract.name, override(table, mine), simulated=False)
        check_columns(experiment.data, experiment.task.columns, self.own.data, self.own.columns)
        if self.own.model is None:
            check_model(experiment.model.name, self.own.models, Path(self.own.folder) / "model.txt")
        most = self.own.threads or cores()
        if threads(experiment) <= most:
            return experiment
        return check(contract.name, override(experiment.table, {"compute.threads": most}), simulated=False)

    def join(self, contract: Contract) -> dict[str, Any]:
        experiment = self.settled(contract)
        split = own_split(experiment.data, experiment.task.columns, self.own.columns)
        classes = own_classes(split, experiment.data, experiment.task.columns)
        rows, _ = read_own(split, experiment.data, experiment.task.columns, classes)
        if classes is not None:
            check_labels(experiment.data, experiment.task.columns, self.own.data, classes)
        numbers = experiment.task.number_sums(rows)
        return {
            "name": self.own.name,
            "version": __version__,
            "examples": len(rows) - (num_held_out(len(rows)) if experiment.method.personal else 0),
            "classes": None if classes is None else asdict(classes),
            "budget": asdict(self.limits.budget),
            "speed": self.own.speed,
            "link": None if self.own.link is None else parse_link(self.own.link, "--link"),
            "numbers": None if numbers is None else asdict(numbers),
        }

    def load(self, contract: Contract, experiment: Experiment) -> ClientWork:
        split = own_split(experiment.data, experiment.task.columns, self.own.columns)
        data, notes = read_own(split, experiment.data, experiment.task.columns, contract.classes)
        self.check_same(contract, data)
        labels = () if contract.classes is None else contract.classes.values
        base = experiment.task.load(experiment.model, labels, 0)
        origin, parts = Origin(), None
        if experiment.method.personal:
            origin = Origin.of(base, experiment.model)
            parts = TrainingRows(len(data), experiment.run.seed)
        self.owner = Owner(self.own.name, experiment, labels, origin, holds_turns(data))
        method, train = experiment.method, experiment.train
        work = ClientWork(base, experiment.task, data, parts, method.local_training, method.start, train)
        for note in (*notes, *work.notes):
            self.log(f"data: {note}")
        return work

    def check_same(self, contract: Contract, data: Any) -> None:
        """Raise InputError where the data of this client are not those with which it began the run. Nothing of this
        leaves the machine.
        """
        if not contract.run.isalnum():  # it names a file here
            return
        file = Path(self.own.folder) / "data" / f"{contract.run}-{self.own.name}.sha256"
        now = fingerprint({"train": data})
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, now.encode())
        elif file.read_text() != now:
            raise InputError("data.name: the data are not those with which this client began the run: bring them back")

    def attempt(self, work: ClientWork, contract: Contract, task: ClientTask) -> ClientUpdate | ClientFailure:
        """Train from the version of its kept tensors that the task names; what it keeps then never leaves this
        machine. A task beyond this client's own limits is refused, and one that would send away what the run's
        settings say stays here.
        """
        if reason := contradiction(task, self.owner.experiment.method):
            return ClientFailure(task.client, "rejected", reason)
        estimate = partial(self.estimate, work, contract)
        if excess := self.limits.excess(task, work.size(task.client), estimate):
            return ClientFailure(task.client, "rejected", excess)
        if not (task.private or work.keeps(task)):
            return work.attempt(task)
        if not contract.run.isalnum():  # it names a folder here
            return ClientFailure(task.client, "rejected", "the run has no name under which a client can keep anything")
        states = contract.table["keep"]  # at the server, which may go back to each of them
        store = KeptTensors(Path(self.own.folder) / "kept" / contract.run, states + 1)
        try:
            kept = store.load(task.kept_version)
        except InputError as error:
            return ClientFailure(task.client, "rejected", str(error))
        if task.private:
            answer = self.attempt_with_own(work, contract, task, kept)
        else:
            answer = work.attempt(replace(task, kept=kept))
        if isinstance(answer, ClientFailure):
            return answer
        store.save(task.round, answer.kept)
        return replace(answer, kept={})

    def attempt_with_own(
        self, work: ClientWork, contract: Contract, task: ClientTask, kept: Named
    ) -> ClientUpdate | ClientFailure:
        """Train a model of which a part is the client's own, measure it in rounds that are evaluated, and keep it."""
        assert isinstance(work.parts, TrainingRows)  # as the run's settings say
        run, held_out = self.owner.experiment.run, work.parts.held_out(task.client)
        due = (task.round + 1) % run.eval_every == 0 or task.round + 1 == run.rounds
        estimate = partial(self.estimate, work, contract)
        if due and not (due := self.limits.has_time(task, work.size(task.client), len(held_out), estimate)):
            self.log(f"round {task.round}: not measured on its {len(held_out)} held-out examples: no time by --seconds")
        found = attempt_with_own(work, task, kept, run.seed, held_out if due and len(held_out) else None)
        if isinstance(found, ClientFailure):
            return found
        OwnModel.of(Path(self.own.folder), contract.run).keep(self.owner, found)
        return found.update

    def estimate(self, work: ClientWork, contract: Contract, task: ClientTask) -> Estimate:
        """Predict what a task costs on this machine, as a server does when it plans."""
        if self.planner is None or self.planner[0] != contract:
            experiment, labels = self.settled(contract), contract.classes.values if contract.classes else ()
            planner = make_planner(experiment, labels, lambda _: work.row_tokens, wanted=True)
            assert planner is not None  # it was wanted
            self.planner = contract, planner
        planner = replace(self.planner[1], train=task.train)
        examples, rows = work.size(task.client), work.rows(task.client)
        profile = ClientProfile(task.client, examples, self.limits.budget, self.own.speed, num_rows=rows)
        if task.sums:
            shape, named = asked_for(task, work.base, work.start, work.size(task.client), targets_of(work.kind))
            return planner.estimate_of_sums(profile, named, shape.columns)
        return planner.estimate_of(profile, task.trained.sum(axis=1), task.policy)
