"""Define the tables of an experiment file that belong to no other module. [method], [model], [data],
[train] and [guard] are MethodSettings, ModelSettings, DataSettings, TrainSettings and GuardSettings."""

import math
from dataclasses import dataclass, replace

import numpy as np

from hellora.budgets.planner import EXACT, USES
from hellora.budgets.written import written_budget
from hellora.core.exchange import Policy, WireFormat
from hellora.core.seeds import rng_for
from hellora.core.types import Budget
from hellora.core.units import parse_bytes, parse_layers
from hellora.experiments.devices import Device, check_distribution, devices_of_table, drawn_devices, parse_link

DEVICE = ("memory", "speed", "link", "availability")  # what a table or a distribution says instead
MOST_KEPT = 100  # states; real clients keep one more of their own tensors
PER_GROUP = ("layers", "ranks", "seconds", "uplink", *DEVICE)  # settings with one value per group
ALWAYS = (*USES, "prefix_cache", "prefix_cache_on_disk")


@dataclass(frozen=True)
class RunSettings:
    """The top of the file says how long a run is, and how many clients a round asks."""

    seed: int = 0  # of every random number of the run
    rounds: int = 10  # how many
    cohort: int = 8  # clients per round
    min_clients: int = 1  # usable updates that a round needs
    attempts: int = 3  # cohorts tried in a round before the run stops
    eval_every: int = 1  # rounds between evaluations; the last round is always evaluated
    eval_examples: int = 0  # of the test split, by class, in every evaluation but the first and the last; 0 = all
    over_select: float = 1.0  # clients asked for each of the cohort; the first `cohort` to answer count
    deadline: float | None = None  # seconds that a client has in a round, simulated or real
    keep: int = 3  # states kept, of the last rounds: --resume --from-round goes back to one of them
    diagnostics: bool = True  # measure aggregation_error and energy after each round

    def __post_init__(self) -> None:
        for name in ("rounds", "cohort", "min_clients", "attempts", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.keep <= MOST_KEPT:
            raise ValueError(f"keep must be 1 to {MOST_KEPT} states, not {self.keep}")
        if self.eval_examples < 0:
            raise ValueError(f"eval_examples must be 0 (all) or more, not {self.eval_examples}")
        if self.min_clients > self.cohort:
            raise ValueError(f"min_clients = {self.min_clients} can never be met by cohort = {self.cohort}")
        if self.over_select < 1:
            raise ValueError(f"over_select must be at least 1, not {self.over_select}: 1.3 asks 13 clients for 10")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"deadline must be greater than 0 seconds, not {self.deadline}")

    @property
    def asked(self) -> int:
        """Count the clients asked in a round."""
        return math.ceil(round(self.cohort * self.over_select, 9))  # 50 × 1.1 is 55, not 55.00000000000001


@dataclass(frozen=True)
class FleetSettings:
    """The [fleet] table has groups of clients by what they can afford, and their shares of the clients (RoC)."""

    layers: tuple[int | str, ...] = ()  # that a client of each group can train: 2, "1/3", "all"; () = all, for everyone
    shares: tuple[float, ...] = ()  # () = equal
    ranks: tuple[int | tuple[int, ...], ...] = ()  # the rank it can train, or one rank per layer; () = the model's
    memory: tuple[str, ...] = ()  # what training may take, such as "6GiB"; () = no limit
    seconds: tuple[float, ...] = ()  # of local training per round; () = no limit. Needs speed
    uplink: tuple[str, ...] = ()  # what an update may take, such as "500KB"; () = no limit
    speed: tuple[float, ...] = ()  # operations per second that a client of each group trains with; () = not known
    link: tuple[str, ...] = ()  # bytes per second, each way, such as "1MB"; () = not known
    availability: tuple[float, ...] = ()  # probability that a client can be reached in a round; () = 1
    table: str = ""  # a CSV file with a device per row: memory, speed, link, availability, client
    distribution: str = ""  # devices are drawn from: cross_device, cross_silo

    def __post_init__(self) -> None:
        self.check_layers()
        self.check_groups()
        self.check_devices()
        self.check_seconds()
        self.check_ranks()
        self.check_shares()

    def check_layers(self) -> None:
        """Raise unless some group can train a layer."""
        if any(parse_layers(layers) < 0 for layers in self.layers):
            raise ValueError("layers must not be negative")
        if self.layers and not any(self.layers):
            raise ValueError("layers is 0 for every group, so no client can train: give at least one group more than 0")

    def check_groups(self) -> None:
        """Raise unless sizes are sizes, and all settings speak of the same number of groups."""
        for name in ("memory", "uplink"):
            for text in getattr(self, name):
                parse_bytes(text, f"fleet.{name}")
        sizes = {name: len(getattr(self, name)) for name in PER_GROUP if getattr(self, name)}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} has {size} groups" for name, size in sizes.items())
            raise ValueError(f"{said}: give one each, or set the others to []")

    def check_devices(self) -> None:
        """Raise unless devices can be as they are described, and are described in one place."""
        for text in self.link:
            parse_link(text, "fleet.link")
        if not all(0 < value <= 1 for value in self.availability):
            raise ValueError("availability must be above 0 and at most 1 for every group")
        named = [name for name in ("table", "distribution") if getattr(self, name)]
        said = [name for name in DEVICE if getattr(self, name)]
        if len(named + said) > 1 and named:
            raise ValueError(f"{' and '.join(named + said)} say what clients train on: keep one of them")
        if self.distribution:
            check_distribution(self.distribution)

    def check_seconds(self) -> None:
        """Raise unless a limit of time can be held against a speed."""
        for name in ("seconds", "speed"):
            if not all(value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must be greater than 0 for every group")
        if self.seconds and not (self.speed or self.table or self.distribution):
            raise ValueError(
                "seconds needs speed, the operations per second of each group's device: "
                "`hellora plan --measure` tells that of this one"
            )

    def check_ranks(self) -> None:
        """Raise unless some group can train a rank."""
        if any(rank < 0 for ranks in self.ranks for rank in (ranks if isinstance(ranks, tuple) else (ranks,))):
            raise ValueError("ranks must not be negative")
        if self.ranks and not any(np.any(ranks) for ranks in self.ranks):
            raise ValueError("ranks is 0 for every group, so no client can train: give at least one group more than 0")

    def check_shares(self) -> None:
        """Raise unless every group has its share of the clients, and some of them have one above 0."""
        if self.shares and len(self.shares) != self.groups:
            raise ValueError(
                f"shares has {len(self.shares)} numbers for {self.groups} groups of clients: give one each"
            )
        if any(share < 0 for share in self.shares) or (self.shares and not sum(self.shares)):
            raise ValueError("shares must not be negative, nor all 0")

    @property
    def groups(self) -> int:
        return max(len(getattr(self, name)) for name in PER_GROUP)

    @property
    def in_bytes_or_seconds(self) -> bool:
        """Return True if a budget is more than layers and ranks, or a client's time can be told."""
        return any((self.memory, self.seconds, self.uplink, self.speed, self.table, self.distribution))

    def budget(self, group: int) -> Budget:
        """Return what a group can afford; where devices are drawn or in a table, their memory comes in its place."""
        return written_budget(
            "fleet.",
            layers=self.layers[group] if self.layers else None,
            rank=self.ranks[group] if self.ranks else None,
            memory=self.memory[group] if self.memory else None,
            seconds=self.seconds[group] if self.seconds else None,
            uplink=self.uplink[group] if self.uplink else None,
        )

    def device(self, group: int) -> Device:
        return Device(
            memory_bytes=self.budget(group).memory_bytes,
            speed=self.speed[group] if self.speed else None,
            link=parse_link(self.link[group], "fleet.link") if self.link else None,
            availability=self.availability[group] if self.availability else 1.0,
        )

    def budgets(self, clients: int, seed: int) -> list[Budget]:
        """Return one budget per client id."""
        groups, devices = self.members(clients, seed), self.devices(clients, seed)
        return [
            replace(self.budget(group), memory_bytes=device.memory_bytes)
            for group, device in zip(groups, devices, strict=True)
        ]

    def devices(self, clients: int, seed: int) -> list[Device]:
        """Return what each client trains on, by id: drawn, a row of the table, or that of its group."""
        if self.distribution:
            return drawn_devices(self.distribution, clients, seed)
        if self.table:
            return devices_of_table(self.table, clients, seed)
        return [self.device(group) for group in self.members(clients, seed)]

    def members(self, clients: int, seed: int) -> list[int]:
        """Deal out by seed the group of each client, by id, in proportion to their shares (largest remainder)."""
        if not self.groups:
            return [0] * clients
        shares = np.array(self.shares or [1.0] * self.groups)
        exact = clients * shares / shares.sum()
        counts = np.floor(exact).astype(int)
        for group in np.argsort(counts - exact, kind="stable")[: clients - counts.sum()]:
            counts[group] += 1
        groups: list[int] = rng_for(seed, "fleet").permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
        return groups


@dataclass(frozen=True)
class PolicySettings:
    """The [policy] table says how clients train within their memory."""

    use: tuple[str, ...] = ()  # what every client does
    may: tuple[str, ...] = EXACT  # what a client may do besides, where its budget asks for it
    micro_batch: int | None = None  # examples in one pass, where `use` has micro_batch
    prefix_cache_bytes: str | None = None  # what a prefix cache may take; None = no limit

    def __post_init__(self) -> None:
        for name, allowed in (("use", ALWAYS), ("may", USES)):
            for what in getattr(self, name):
                if what not in allowed:
                    raise ValueError(f"{name} has {what!r}: choose among {', '.join(allowed)}")
        if ("micro_batch" in self.use) != (self.micro_batch is not None):
            raise ValueError("use = ['micro_batch'] and micro_batch = a number of examples belong together: set both")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1 example, not {self.micro_batch}")
        if self.prefix_cache_bytes is not None:
            parse_bytes(self.prefix_cache_bytes, "policy.prefix_cache_bytes")

    @property
    def policy(self) -> Policy:
        """Return what every client does."""
        use, limit = set(self.use), self.prefix_cache_bytes
        return Policy(
            recompute="all" if "recompute_all" in use else "frozen" if "recompute_frozen" in use else "none",
            int8_activations="int8_activations" in use,
            bf16="bf16" in use,
            micro_batch=self.micro_batch,
            prefix_cache="memory" if "prefix_cache" in use else "disk" if "prefix_cache_on_disk" in use else "none",
            prefix_cache_bytes=None if limit is None else parse_bytes(limit, "policy.prefix_cache_bytes"),
            merge="beside" not in use,
        )


@dataclass(frozen=True)
class ServerSettings:
    """The [server] table names the server optimizer; its own settings are not among these."""

    optimizer: str = "average"  # of the server's step on what was aggregated


@dataclass(frozen=True)
class TaskSettings:
    """The [task] table names the task, and metrics besides its own; the task's own settings are not among these."""

    name: str = "sequence_classification"  # where it is not given, it is found from data and model
    metrics: tuple[str, ...] = ()  # matthews, balanced_accuracy, auroc, or your own "mine.py:function"

    def __post_init__(self) -> None:
        names = [name.rpartition(":")[2] for name in self.metrics]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"metrics has two of the name {twice!r}: keep one of them")


@dataclass(frozen=True)
class WireSettings:
    """The [wire] table says how tensors travel between server and clients, in a simulation, too."""

    format: WireFormat = "fp32"  # fp32 as they are, bf16 or int8 rounded


@dataclass(frozen=True)
class ComputeSettings:
    """The [compute] table says where the work is done. It does not change results at the same number of threads."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps …; auto = every CUDA device, else the CPU
    workers: int = 1  # processes that train side by side; 0 = one per CUDA device, 1 on the CPU
    threads: int = 0  # CPU threads of each process; 0 = the machine's cores divided by the workers
    eval_batch_size: int = 64  # examples in one pass of an evaluation

    def __post_init__(self) -> None:
        if self.workers < 0 or self.threads < 0 or self.eval_batch_size < 1:
            raise ValueError("eval_batch_size must be at least 1, and workers and threads 0 (automatic) or more")


@dataclass(frozen=True)
class TrackingSettings:
    """The [tracking] table says which experiment trackers are told of each round. It does not change results."""

    trackers: tuple[str, ...] = ()  # tensorboard, wandb, mlflow … of accelerate, or your own "mine.py:Class"
    project: str = "hellora"  # under which they show the run

    def __post_init__(self) -> None:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers names one twice: {', '.join(self.trackers)}")
