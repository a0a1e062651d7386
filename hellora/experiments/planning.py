"""Plan who takes part with which budget, what fits it, and a round's allocation, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hellora.budgets.planner import Planner
from hellora.core.errors import InputError
from hellora.core.state import ServerState
from hellora.core.types import Adapter, AdapterSpec, Allocation, ClientProfile
from hellora.costing.calibration import calibrate
from hellora.costing.traced_rows import Shape
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import kind_of
from hellora.methods.context import Scores
from hellora.methods.demands import PLANNER
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
    )


def fleet(experiment: Experiment, sizes: Sequence[int]) -> tuple[ClientProfile, ...]:
    """Make the profiles of all clients, by id."""
    budgets = experiment.fleet.budgets(len(sizes), experiment.run.seed)
    devices = experiment.fleet.devices(len(sizes), experiment.run.seed)
    return tuple(
        ClientProfile(i, size, budget, device.speed, device.link, device.availability)
        for i, (size, budget, device) in enumerate(zip(sizes, budgets, devices, strict=True))
    )
