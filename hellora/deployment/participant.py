"""Floor 5: a client's side of a federation over a network: what it says of itself, and its training.

It keeps the base model, loaded once, for as long as its process lives. All that it needs besides its own data comes
with every message (`Contract`), so that a process that was started anew can go on.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from hellora.backends.wire import pack_answer, unpack_task
from hellora.client import ClientWork
from hellora.config import Experiment, check, override
from hellora.data.sides import Classes, own_classes, own_split, read_own
from hellora.deployment.joining import LONGEST_CLASS, MOST_CLASSES
from hellora.devices import parse_link
from hellora.errors import InputError
from hellora.experiment import device_check, devices, prepare
from hellora.types import Budget
from hellora.units import parse_bytes

AUTO_SHARE = 0.9  # of the memory that is free when the client starts


@dataclass(frozen=True)
class Contract:
    """What all clients of a run agree on: the experiment with every default written out, and the classes.

    `base` is the fingerprint of the server's base model. Classes and base are not known when clients join.
    """

    name: str
    table: Mapping[str, Any]
    classes: Classes | None = None
    base: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Contract":
        fields = json.loads(text)
        classes = fields.pop("classes")
        if classes is not None:
            classes = Classes(tuple(classes["values"]), tuple(classes["present"]), classes["declared"])
        return Contract(classes=classes, **fields)

    @property
    def experiment(self) -> Experiment:
        return check(self.name, self.table, simulated=False)


class Participant(ABC):
    """A client, or in a simulation all of them, in one process."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.contract: Contract | None = None  # whose base model is loaded
        self.work: ClientWork | None = None

    @abstractmethod
    def join(self, contract: Contract) -> dict[str, Any]:
        """What the client says of itself; nothing of its data but its size and its classes."""

    @abstractmethod
    def load(self, contract: Contract, experiment: Experiment) -> ClientWork:
        """Data and model. Raises InputError where they do not fit."""

    @abstractmethod
    def settled(self, contract: Contract) -> Experiment:
        """The contract's experiment, as this client carries it out."""

    def ready(self, contract: Contract) -> ClientWork:
        """The work of a contract, loaded if it was not."""
        if self.work is None or contract != self.contract:
            started, self.work, self.contract = time.perf_counter(), None, None  # the old one is freed first
            experiment = self.settled(contract)
            torch.set_num_threads(experiment.compute.threads)
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
        """Load everything; the longest example in tokens (1 where they have no length)."""
        lengths = self.ready(contract).encoded.lengths
        return {"longest": 1 if lengths is None else int(lengths.max())}

    def train(self, contract: Contract, data: bytes) -> bytes:
        """The answer to a packed task, packed."""
        work, task = self.ready(contract), unpack_task(data)
        started = time.perf_counter()
        self.log(f"round {task.round}: training")
        answer = work.attempt(task)
        self.log(f"round {task.round}: trained in {time.perf_counter() - started:.1f} s")
        return pack_answer(answer, task, work.base.spec, contract.experiment.wire.format)


class Simulated(Participant):
    """Every client of an experiment, with its part of the experiment's own data."""

    def join(self, contract: Contract) -> dict[str, Any]:
        return {}

    def settled(self, contract: Contract) -> Experiment:
        return contract.experiment

    def load(self, contract: Contract, experiment: Experiment) -> ClientWork:
        return prepare(experiment).work


@dataclass(frozen=True)
class OwnSettings:
    """What a client says of itself: its name, its data, what it can afford. `memory` is auto, none or a size."""

    name: str
    data: Mapping[str, Any]
    memory: str = "auto"
    layers: int | None = None
    rank: int | None = None
    uplink: str | None = None
    seconds: float | None = None
    speed: float | None = None
    link: str | None = None
    device: str = "auto"
    model: str | None = None  # where the base model lies here

    @property
    def budget(self) -> Budget:
        memory = None
        if self.memory == "auto":
            memory = int(AUTO_SHARE * free_memory(self.device))
        elif self.memory != "none":
            memory = parse_bytes(self.memory, "--memory")
        uplink = None if self.uplink is None else parse_bytes(self.uplink, "--uplink")
        return Budget(self.layers, self.rank, memory, self.seconds, uplink)


def free_memory(device: str) -> int:
    """Bytes that are free on a device now."""
    name = devices(device)[0]
    return torch.cuda.mem_get_info(name)[0] if name.startswith("cuda") else psutil.virtual_memory().available


class WithOwnData(Participant):
    """One client with its own data, device and budget."""

    def __init__(self, own: OwnSettings, log: Callable[[str], None]) -> None:
        super().__init__(log)
        device_check(own.device)
        self.own, self.budget = own, own.budget  # before anything is loaded

    def settled(self, contract: Contract) -> Experiment:
        """With this client's data, device and model in place of the server's. Public data stays in the settings, for
        methods that need it, and unread."""
        table = {**contract.table, "data": {**contract.table["data"], "proxy": "", "subset": ""}}
        mine: dict[str, Any] = {f"data.{key}": value for key, value in self.own.data.items()}
        mine["compute.device"] = self.own.device
        if self.own.model is not None:
            mine["model.name"] = self.own.model
        return check(contract.name, override(table, mine), simulated=False)

    def join(self, contract: Contract) -> dict[str, Any]:
        experiment = self.settled(contract)
        split = own_split(experiment.data)
        classes = own_classes(split, experiment.data, experiment.task.columns)
        if classes is not None and "label" not in self.own.data:
            self.check_label(experiment.data.label, classes)
        link = None if self.own.link is None else parse_link(self.own.link, "--link")
        return {
            "name": self.own.name,
            "examples": len(split.data),
            "classes": None if classes is None else asdict(classes),
            "budget": asdict(self.budget),
            "speed": self.own.speed,
            "link": link,
        }

    def check_label(self, column: str, classes: Classes) -> None:
        """Raise InputError where what the run calls labels may well be texts, which nobody is to see."""
        if len(classes.values) > MOST_CLASSES or any(len(label) > LONGEST_CLASS for label in classes.values):
            raise InputError(
                f"data.label = {column!r} of the run names a column here with more than {MOST_CLASSES} values, or with "
                f"longer ones than {LONGEST_CLASS} characters, which may be no labels: they are not told, unless this "
                f"client sets data.label itself"
            )

    def load(self, contract: Contract, experiment: Experiment) -> ClientWork:
        data = read_own(own_split(experiment.data), experiment.data, experiment.task.columns, contract.classes)
        labels = () if contract.classes is None else contract.classes.values
        base = experiment.task.load(experiment.model, labels, 0)
        return ClientWork(base, experiment.task, data, None)
