"""Hold what clients answered against what they were sent: each is usable, rejected or missing.

Bytes are checked before, where there are any (`backends.wire.read_answer`); here values are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, TensorSpec, problem_with_named
from hellora.core.held_out import HeldOut
from hellora.core.per_class import MOST
from hellora.core.state import Attempt
from hellora.core.types import Adapter, AdapterSpec
from hellora.methods.sharing import Crossing, answer_part, answered_bytes, delta_norm
from hellora.methods.strategies import Answers
from hellora.server.backend import Order
from hellora.server.federation import Federation
from hellora.server.simulation import Turnout

MOST_TOKENS = 2**20  # supervised, of one example: more than a context of any model
MOST_METRICS = 64 + 3 * MOST  # three are of a class
LONGEST_NAME = 100  # characters of a metric's


def problem_with(
    update: ClientUpdate,
    task: ClientTask,
    spec: AdapterSpec,
    num_examples: int = 0,
    max_norm: float | None = None,
    simulated: bool = True,
) -> str | None:
    """Say why an update must not count, or return None. It is held against the task that was sent, name by name.

    `num_examples` is what the server knows the client to have, 0 = not known; `max_norm` the largest L2 norm that the
    delta as a whole may have. What a real client keeps must not come along.
    """
    if reason := problem_with_numbers(update, num_examples) or problem_with_adapter(update.adapter, task, spec):
        return reason
    if reason := problem_with_named(update.report, task.declared.report, "report"):
        return reason
    if reason := problem_with_named(update.kept, task.declared.kept if simulated else {}, "kept tensor"):
        return reason
    if max_norm is not None and (norm := delta_norm(update.adapter, answer_part(task, spec), task)) > max_norm:
        return f"its delta has a norm of {norm:.4g}, and guard.max_norm is {max_norm:g}"
    return None


def problem_with_adapter(adapter: Adapter, task: ClientTask, spec: AdapterSpec) -> str | None:
    """Say why what was trained cannot be the answer to a task, or return None."""
    sent = answer_part(task, spec)
    expected, got = sent.tensors(), adapter.tensors()
    if unknown := sorted(got.keys() - expected.keys()):
        return f"unknown tensor {unknown[0]}"
    if absent := sorted(expected.keys() - got.keys()):
        return f"tensor {absent[0]} is absent"
    for name, tensor in got.items():
        if reason := TensorSpec.of(expected[name]).problem_with(tensor):
            return f"{name} {reason}"
    for name, pair in adapter.pairs.items():
        if pair.scale != sent.pairs[name].scale:
            return f"{name} has scale {pair.scale}, expected {sent.pairs[name].scale}"
    return None


def problem_with_numbers(update: ClientUpdate, num_examples: int) -> str | None:
    """Say why an update's counts and metrics cannot be, or return None."""
    if update.num_examples < 1:
        return f"trained on {update.num_examples} examples"
    if 0 < num_examples < update.num_examples:
        return f"trained on {update.num_examples} examples, but it has {num_examples}"
    if update.num_tokens is not None and not 1 <= update.num_tokens <= MOST_TOKENS * update.num_examples:
        return f"trained on {update.num_tokens} tokens of {update.num_examples} examples"
    if reason := problem_with_metrics(update.metrics):
        return reason
    if held_out := HeldOut.of(update.metrics):
        return held_out.problem(num_examples)
    return None


def problem_with_metrics(metrics: Mapping[str, float]) -> str | None:
    """Say why metrics cannot be, or return None."""
    if len(metrics) > MOST_METRICS:
        return f"has {len(metrics)} metrics, at most {MOST_METRICS} are kept"
    for name, value in metrics.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            return f"a metric has the name {str(name)[:LONGEST_NAME]!r}"
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
            return f"its metric {name!r} is {value!r}"
    return None


@dataclass(frozen=True, eq=False)
class Gathered:
    """The orders of a round brought these answers and failures, by client id."""

    answers: Answers  # that are usable, by id
    failures: Sequence[ClientFailure]  # by id
    uplink_bytes: Mapping[int, int]  # of every first update that arrived, rejected ones too
    dropped: Mapping[int, Sequence[str]]  # why other answers did not count, by who sent them

    def record(self, cohort: Sequence[int], there: Turnout, crossing: Mapping[int, Crossing]) -> Attempt:
        """Put on record who was asked, who was reached, and what came of it."""
        return Attempt(
            cohort=tuple(cohort),
            updated=tuple(update.client for _, update in self.answers),
            missing={f.client: f.reason for f in self.failures if f.kind == "missing"},
            rejected={f.client: f.reason for f in self.failures if f.kind == "rejected"},
            downlink_bytes={order.client: crossing[order.client].down for order in there.reached},
            uplink_bytes=self.uplink_bytes,
            simulated_seconds=there.lasted,
            dropped=self.dropped,
        )

    def without(self, reasons: Mapping[int, str]) -> "Gathered":
        """Return the same with these clients' answers rejected, each for its reason."""
        rejected = [ClientFailure(client, "rejected", reason) for client, reason in reasons.items()]
        return replace(
            self,
            answers=[answer for answer in self.answers if answer[1].client not in reasons],
            failures=sorted([*self.failures, *rejected], key=lambda failure: failure.client),
        )


def gather(
    run: Federation,
    orders: Sequence[Order],
    missing: Sequence[ClientFailure],
    heard: Iterator[ClientUpdate | ClientFailure],
) -> Gathered:
    """Check and count each answer as it arrives, each client once; let a rejected one go at once."""
    by_client = {order.client: order for order in orders}
    usable: dict[int, tuple[ClientTask, ClientUpdate]] = {}
    failures = {failure.client: failure for failure in missing}
    uplink: dict[int, int] = {}
    dropped: dict[int, list[str]] = {}
    for answer in heard:
        client = answer.client
        if client not in by_client:
            dropped.setdefault(client, []).append("was not asked")
        elif client in uplink or client in failures:
            dropped.setdefault(client, []).append("answered already")
        elif isinstance(answer, ClientFailure):
            failures[client] = answer
        elif (answer.round, answer.attempt) != ((task := by_client[client].make()).round, task.attempt):
            tried = f", attempt {answer.attempt}" if answer.round == task.round else ""
            dropped.setdefault(client, []).append(f"late: it answered round {answer.round}{tried}")
        else:
            uplink[client] = answered_bytes(answer, task.factors, run.method, run.wire)
            examples = run.by_id[client].num_examples
            most = None if run.max_norm == "auto" else run.max_norm  # what is automatic depends on all answers: `guard`
            if reason := problem_with(answer, task, run.spec, examples, most, run.simulated):
                failures[client] = ClientFailure(client, "rejected", reason)
            else:
                usable[client] = (task, answer)
    for client in by_client.keys() - usable.keys() - failures.keys():
        failures[client] = ClientFailure(client, "missing", "no answer")
    return Gathered(
        answers=[usable[client] for client in sorted(usable)],
        failures=[failures[client] for client in sorted(failures)],
        uplink_bytes=dict(sorted(uplink.items())),
        dropped=dropped,
    )
