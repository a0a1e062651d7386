"""What clients answered, held against what they were sent: usable, rejected or missing."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from hellora.core.types import AdapterSpec, ClientFailure, ClientProfile, ClientTask, ClientUpdate
from hellora.methods.protocols import Answers
from hellora.methods.sharing import answer_part, delta_norm

MOST_TOKENS = 2**20  # supervised, of one example: more than a context of any model
MOST_METRICS = 64
LONGEST_NAME = 100  # characters of a metric's


def problem_with(
    update: ClientUpdate, task: ClientTask, spec: AdapterSpec, num_examples: int = 0, max_norm: float | None = None
) -> str | None:
    """Why an update must not count, or None. It is held against the task that was sent, name by name.

    `num_examples` is what the server knows the client to have, 0 = not known; `max_norm` the largest L2 norm that the
    delta as a whole may have.
    """
    if reason := problem_with_numbers(update, num_examples) or problem_with_scores(update, spec):
        return reason
    sent = answer_part(task, spec)
    expected = sent.tensors()
    got = update.adapter.tensors()
    if unknown := sorted(got.keys() - expected.keys()):
        return f"unknown tensor {unknown[0]}"
    if absent := sorted(expected.keys() - got.keys()):
        return f"tensor {absent[0]} is absent"
    for name, tensor in got.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            return f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {want.dtype} {tuple(want.shape)}"
        if not torch.isfinite(tensor).all():
            return f"{name} has nan or infinite values"
    for name, pair in update.adapter.pairs.items():
        if pair.scale != sent.pairs[name].scale:
            return f"{name} has scale {pair.scale}, expected {sent.pairs[name].scale}"
    if max_norm is not None and (norm := delta_norm(update.adapter, sent)) > max_norm:
        return f"its delta has a norm of {norm:.4g}, and guard.max_norm is {max_norm:g}"
    given = int(task.trained.sum(axis=1).max())
    if update.rank is not None and not (isinstance(update.rank, int) and 1 <= update.rank <= given):
        return f"reported rank {update.rank!r}, expected 1 to {given}"
    return None


def problem_with_numbers(update: ClientUpdate, num_examples: int) -> str | None:
    """Why an update's counts and metrics cannot be, or None."""
    if update.num_examples < 1:
        return f"trained on {update.num_examples} examples"
    if 0 < num_examples < update.num_examples:
        return f"trained on {update.num_examples} examples, but it has {num_examples}"
    if update.num_tokens is not None and not 1 <= update.num_tokens <= MOST_TOKENS * update.num_examples:
        return f"trained on {update.num_tokens} tokens of {update.num_examples} examples"
    if len(update.metrics) > MOST_METRICS:
        return f"has {len(update.metrics)} metrics, at most {MOST_METRICS} are kept"
    for name, value in update.metrics.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            return f"a metric has the name {str(name)[:LONGEST_NAME]!r}"
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
            return f"its metric {name!r} is {value!r}"
    return None


def problem_with_scores(update: ClientUpdate, spec: AdapterSpec) -> str | None:
    """Why an update's layer scores cannot be, or None."""
    scores = update.layer_scores
    if scores is None:
        return None
    if scores.shape != (spec.num_layers,):
        return f"layer scores have shape {tuple(scores.shape)}, expected ({spec.num_layers},)"
    if not scores.is_floating_point():
        return f"layer scores are {scores.dtype}"
    if (scores < 0).any() or scores.isinf().any():
        return "layer scores are negative or infinite"
    return None


def collect(
    tasks: Sequence[ClientTask],
    answers: Iterator[ClientUpdate | ClientFailure],
    spec: AdapterSpec,
    fleet: Sequence[ClientProfile],
    max_norm: float | None = None,
) -> tuple[Answers, list[ClientFailure], Mapping[int, ClientUpdate], Mapping[int, Sequence[str]]]:
    """Step 3's end: sort what arrived into usable updates and failures, both by client id, each client once.

    Returns the usable answers, the failures, every first update that arrived, by client id, and why other answers were
    dropped, by client id.
    """
    by_client = {task.client: task for task in tasks}
    num_examples = {profile.id: profile.num_examples for profile in fleet}
    arrived: dict[int, ClientUpdate] = {}
    failures: dict[int, ClientFailure] = {}
    dropped: dict[int, list[str]] = {}
    for answer in answers:
        client = answer.client
        if client not in by_client:
            dropped.setdefault(client, []).append("was not asked")
        elif client in arrived or client in failures:
            dropped.setdefault(client, []).append("answered already")
        elif isinstance(answer, ClientFailure):
            failures[client] = answer
        elif answer.round != by_client[client].round:
            dropped.setdefault(client, []).append(f"late: it answered round {answer.round}")
        else:
            arrived[client] = answer
            if reason := problem_with(answer, by_client[client], spec, num_examples[client], max_norm):
                failures[client] = ClientFailure(client, "rejected", reason)
    for client in by_client.keys() - arrived.keys() - failures.keys():
        failures[client] = ClientFailure(client, "missing", "no answer")
    usable = [(by_client[client], arrived[client]) for client in sorted(arrived.keys() - failures.keys())]
    return usable, [failures[client] for client in sorted(failures)], arrived, dropped
