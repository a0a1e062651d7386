"""Plan what a client with a budget in bytes and seconds can train of a model: for each pattern, and for the most
valuable row that fits. The model's config is enough; weights are loaded only to measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from hellora.budgets.planner import RESERVE, Estimate, Planner
from hellora.client.train import train_client
from hellora.client.work import ClientWork
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, Outputs, Policy, TrainSettings
from hellora.core.state import ServerState
from hellora.core.types import Adapter, ClientProfile, Ranks
from hellora.core.units import in_bytes
from hellora.data.settings import Columns
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import device_check, devices, kind_of
from hellora.experiments.planning import EqualScores, fleet, planner_of
from hellora.model.load import task_of
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.server.federation import Federation
from hellora.server.rounds import allocate
from hellora.tasks import Batch, Encoded, Example, Task, length_limit

PATTERNS: Mapping[str, Mapping[str, Any]] = {
    "triangle": {"allocator": "geometric", "pattern": "triangle"},
    "inverted_triangle": {"allocator": "geometric", "pattern": "inverted_triangle"},
    "bottleneck": {"allocator": "geometric", "pattern": "bottleneck"},
    "uniform": {"allocator": "geometric", "pattern": "uniform"},
    "depth_from_output": {"allocator": "depth_from_output"},
    "budget_value": {"allocator": "budget_value"},
}
STEPS = 2  # measured, after one that is not


@dataclass(frozen=True)
class Choice:
    """A choice is what an allocator gives the client; it has no estimate where nothing of its kind fits."""

    name: str
    ranks: Ranks  # (layers,)
    estimate: Estimate | None


@dataclass(frozen=True)
class BudgetPlan:
    """A budget plan says what a client can train, and what that is based on."""

    experiment: Experiment
    planner: Planner
    client: ClientProfile
    choices: Sequence[Choice]

    @property
    def assumptions(self) -> list[str]:
        """Say what the numbers rest on, a sentence each."""
        model, train = self.planner.model, self.experiment.train
        batch = self.planner.work(self.client).batch
        device = kind_of(self.experiment.compute.device)
        return [
            f"{self.experiment.model.name}: weights {in_bytes(model.weights_bytes)} in {self.weights_in}, "
            f"adapter of rank {model.spec.max_rank} on {len(model.spec.modules)} modules of {model.spec.num_layers} "
            f"layers, in float32.",
            f"batches of {batch} × {model.tokens} tokens, all of them full, {train.optimizer}; "
            f"attention as a fused kernel keeps it; kernels of the kind {device}.",
            f"peak: weights, adapter, gradients, optimizer and activations, without the interpreter and its libraries; "
            f"a row fits if {RESERVE:.0%} of what a step holds is still free.",
            *(["no calibration without values for this model: measured in real steps here."] if model.measured else []),
            *(
                f"{Policy(how.recompute, how.int8_activations, how.bf16).in_words} does not work with this model: "
                f"{found.refused}."
                for how, found in model.steps.items()
                if found.refused
            ),
            f"up: the update as {self.experiment.wire.format}. relative time: operations, recomputation and "
            "micro-batches counted in, against training everything plainly"
            + ("." if self.client.speed else "; --speed or --measure turns it into seconds."),
        ]

    @property
    def weights_in(self) -> str:
        model = self.experiment.model
        return model.dtype if model.quantization == "none" else f"{model.quantization}, largest one unpacked"

    @property
    def plain_operations(self) -> float:
        """Count the operations of a round that trains everything without a policy."""
        ranks = np.full(self.planner.model.spec.num_layers, self.planner.model.spec.max_rank, dtype=np.int64)
        policy, work = self.planner.policy, self.planner.work(self.client)
        return self.planner.operations(ranks, policy, work)

    def relative_time(self, ranks: Ranks, policy: Policy) -> float:
        """Say what a round of training `ranks` under a policy takes, in rounds that train everything without one."""
        return self.planner.operations(ranks, policy, self.planner.work(self.client)) / self.plain_operations


def plan_budget(table: Mapping[str, Any], examples: int, tokens: int | None, here: bool = False) -> BudgetPlan:
    """Plan what a client with the budget of `table` ([fleet] has one group) can train on `examples` examples per round;
    `here`: its steps are to be measured on this machine, which is to have the device before they are counted.

    Raises:
        InputError: a setting is wrong, or nothing fits; the message says the least that would.
    """
    settings = dict(table)
    model = {**settings["model"]}
    task = dict(settings.get("task", {}))
    settings["task"] = task if "name" in task else {"name": task_of(check("plan", {"model": model}).model), **task}
    if tokens is not None and settings["task"]["name"] != "image_classification":
        settings["task"] = {**settings["task"], "max_length": tokens}
    settings |= {"cohort": 1, "data": {**settings.get("data", {}), "clients": 1, "proxy_examples": 1}}
    experiments = {name: check("plan", {**settings, "method": dict(method)}) for name, method in PATTERNS.items()}
    experiment = experiments["budget_value"]
    if examples < 1:
        raise InputError(f"--examples {examples}: a client has at least 1")
    if here:
        device_check(experiment.compute.device)
    base = experiment.task.load(experiment.model, (), 0, weights=False)
    planner = planner_of(experiment, base, length_limit(base, experiment.task.max_tokens))
    (client,) = fleet(experiment, [examples])
    choices = [choice_of(name, each, planner, client) for name, each in experiments.items()]
    return BudgetPlan(experiment, planner, client, choices)


def choice_of(name: str, experiment: Experiment, planner: Planner, client: ClientProfile) -> Choice:
    """Return what an allocator gives a client that is alone."""
    spec = planner.model.spec
    run = Federation(spec, (client,), experiment.method, 1, 1, 0, experiment.train, planner=planner)
    _, allocation, _ = allocate(run, ServerState(0, Adapter({})), EqualScores(spec))
    ranks = allocation.ranks[0]
    return Choice(name, ranks, planner.estimate(client, ranks) if ranks.any() else None)


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Blank(Task):
    """The batches of a blank task are as large as can be, and have nothing in them."""

    kind_of: Task
    tokens: int
    columns: ClassVar[Columns] = "text"

    def kind(self) -> Kind:
        return self.kind_of.kind()

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        return self.kind_of.load(settings, labels, seed, weights)

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        return Encoded(rows)

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        return self.kind_of.blank_batch(base, len(examples), self.tokens)

    def logits(self, base: BaseModel, batch: Batch) -> torch.Tensor:
        return self.kind_of.logits(base, batch)

    def score(self, logits: torch.Tensor, batch: Batch) -> Outputs:
        return self.kind_of.score(logits, batch)

    def outputs(self, base: BaseModel, batch: Batch) -> Outputs:
        return self.kind_of.outputs(base, batch)


@dataclass(frozen=True)
class Measured:
    """A measurement says what a step took; `speed` is in operations per second."""

    peak_bytes: int | None
    speed: float


def measure(plan: BudgetPlan) -> dict[str, Measured]:
    """Run each choice for a few steps on this device, with the model's weights; return what each took, by its name."""
    experiment, batch = plan.experiment, plan.planner.work(plan.client).batch
    base = experiment.task.load(experiment.model, ("a", "b"), 0).to(devices(experiment.compute.device)[0])
    task = Blank(experiment.task, plan.planner.model.tokens)
    ClientWork(base, experiment.task, None, (), settings=experiment.train).warm_up()
    adapter = new_adapter(base.spec, base.initial_head(), 0)
    found = {}
    for choice in plan.choices:
        if choice.estimate is None:
            continue
        rows = np.arange(base.spec.max_rank) < choice.ranks[:, None]
        policy = choice.estimate.policy

        def steps(count: int, rows: Any = rows, policy: Any = policy) -> Mapping[str, float]:
            train: TrainSettings = replace(experiment.train, steps=count)
            asked = ClientTask(0, 0, 0, adapter, rows, train, policy=policy, spare_bytes=0)
            return train_client(asked, base, task, range(batch)).metrics

        steps(1)
        metrics = steps(STEPS)
        one_step = replace(plan.client, num_examples=STEPS * batch)
        work = plan.planner.work(one_step)
        operations = plan.planner.operations(choice.ranks, policy, work)
        peak = metrics.get("peak_bytes")
        found[choice.name] = Measured(None if peak is None else int(peak), operations / metrics["seconds"])
    return found
