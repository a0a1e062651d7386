"""Plan who takes part with which budget, what fits it, and a round's allocation, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hellora.budgets.planner import Planner
from hellora.client.features import targets_of
from hellora.core.errors import InputError
from hellora.core.exchange import Declared
from hellora.core.state import ServerState
from hellora.core.sums import Grid
from hellora.core.types import Adapter, AdapterSpec, Allocation, ClientProfile
from hellora.costing.calibration import calibrate
from hellora.costing.traced_rows import Shape
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import kind_of
from hellora.methods.closed_form import HeadShape
from hellora.methods.context import Scores
from hellora.methods.demands import PLANNER
from hellora.methods.passes import declared, passes_of
from hellora.model.linear_head import linear_head
from hellora.model.load import quantized_away
from hellora.model.resident import BaseModel
from hellora.server.federation import Federation
from hellora.server.rounds import allocate
from hellora.tasks import length_limit


def plan(experiment: Experiment, round: int) -> tuple[Federation, Allocation]:
    """Plan the allocation of one round, without weights or data. Layer scores, which need both, stand as all equal.

    Raises:
        InputError: there is no such round, or no client can train anything.
    """
    if not 0 <= round < experiment.run.rounds:
        raise InputError(f"--round {round}: the rounds are 0 to {experiment.run.rounds - 1}")
    base = experiment.task.load(experiment.model, (), 0, weights=False)
    profiles = fleet(experiment, [0] * experiment.data.num_clients)
    wanted = experiment.fleet.in_bytes_or_seconds
    found = make_planner(experiment, (), lambda bare: length_limit(bare, experiment.task.max_tokens), wanted)
    run = federation(experiment, base, profiles, found)
    return run, rehearse(run, round)


@dataclass(frozen=True)
class HeadPlan:
    """What a client sends in all passes in which the head is solved once, and the most that it holds in one."""

    passes: tuple[str, ...]
    uplink_bytes: int
    uplink_bytes_per_class: int  # besides
    peak_bytes: int | None  # of a client of one batch; None without a planner


def plan_head(experiment: Experiment, run: Federation) -> HeadPlan:
    """Plan how the head is solved, without data: how many classes there are is not known.

    Raises:
        InputError: the model's head cannot be solved.
    """
    method, client = experiment.method, replace(run.fleet[0], num_examples=experiment.train.batch_size)
    _, head = linear_head(experiment.task.load(experiment.model, (), 0, weights=False))
    features, targets = min(method.projection or head.in_features, head.in_features), targets_of(experiment.task)
    passes = tuple(passes_of(method, targets))

    def named(step: str, classes: int) -> Declared:
        shape = HeadShape(features, classes, head.bias is not None, targets)
        grid = Grid(1, torch.ones(shape.on_grid))
        return declared(method.start, step, shape, client.num_examples, grid, features < head.in_features)

    of_none, of_one = (sum(named(step, classes).bytes_up for step in passes) for classes in (0, 1))
    peak = None
    if run.planner is not None:
        costs = [run.planner.estimate_of_sums(client, named(step, 2), features + 1).cost for step in passes]
        peak = max(cost.peak_bytes for cost in costs)
    return HeadPlan(passes, of_none, of_one - of_none, peak)


def make_planner(
    experiment: Experiment, labels: Sequence[str], tokens: Callable[[BaseModel], int], wanted: bool
) -> Planner | None:
    """Make what says what rows and policies fit; None where it is not `wanted` (no budget is in bytes or
    seconds and no speed is known), nor needed by a strategy."""
    if not wanted and not any(PLANNER in each.demands.needs for each in experiment.method.strategies):
        return None
    bare = experiment.task.load(experiment.model, labels, 0, weights=False)
    return planner_of(experiment, bare, tokens(bare))


def planner_of(experiment: Experiment, bare: BaseModel, tokens: int) -> Planner:
    """Make the planner for a base without weights and examples of so many tokens; `bare` is of no further use."""
    device = kind_of(experiment.compute.device)
    saved = quantized_away(bare.net, experiment.model)
    shape = Shape(experiment.train.batch_size, tokens)
    model = calibrate(bare, experiment.task, shape, experiment.method, experiment.train, device, experiment.wire.format)
    policy = experiment.policy.policy
    if experiment.model.quantization != "none":
        policy = replace(policy, merge=False)  # nothing is merged into packed weights
    return Planner(
        replace(model, weights_bytes=model.weights_bytes - saved), experiment.train, policy, experiment.policy.may
    )


@dataclass(frozen=True)
class EqualScores:
    """Equal scores stand in the place of a lent model where there is none yet: all layers score alike."""

    spec: AdapterSpec

    def layer_scores(self, adapter: Adapter) -> Scores:
        return np.ones(self.spec.num_layers)

    def distil(self, students: Mapping[int, Adapter], weights: Mapping[int, float], how: Any, seed: int) -> Any:
        return students


def rehearse(run: Federation, round: int) -> Allocation:
    """Return a round's allocation as far as it is known without weights: all layers score alike."""
    return allocate(run, ServerState(round, Adapter({})), EqualScores(run.spec))[1]


def federation(
    experiment: Experiment,
    base: BaseModel,
    profiles: tuple[ClientProfile, ...],
    planner: Planner | None,
    simulated: bool = True,
) -> Federation:
    run, guard = experiment.run, experiment.guard
    return Federation(
        spec=base.spec,
        fleet=profiles,
        method=experiment.method,
        rounds=run.rounds,
        cohort=run.cohort,
        spares=run.asked - run.cohort,
        deadline=run.deadline,
        seed=run.seed,
        train=experiment.train,
        min_clients=run.min_clients,
        attempts=run.attempts,
        policy=experiment.policy.policy,
        planner=planner,
        simulated=simulated,
        wire=experiment.wire.format,
        max_norm=None if guard.max_norm == "off" else guard.max_norm,
        max_weight=None if guard.max_weight == "off" else guard.max_weight,
        diagnostics=run.diagnostics,
        targets=targets_of(experiment.task),
    )


def fleet(
    experiment: Experiment, sizes: Sequence[int], rows: Sequence[int | None] | None = None
) -> tuple[ClientProfile, ...]:
    """Make the profiles of all clients, by id, of so many examples, packed into so many rows."""
    budgets = experiment.fleet.budgets(len(sizes), experiment.run.seed)
    devices = experiment.fleet.devices(len(sizes), experiment.run.seed)
    return tuple(
        ClientProfile(
            i, size, budget, device.speed, device.link, device.availability, None if rows is None else rows[i]
        )
        for i, (size, budget, device) in enumerate(zip(sizes, budgets, devices, strict=True))
    )
