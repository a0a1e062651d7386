"""Floor 2: what clients answered, held against what they were sent: usable, rejected or missing."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from hellora.protocols import Answers
from hellora.sharing import answer_part
from hellora.types import AdapterSpec, ClientFailure, ClientTask, ClientUpdate


def problem_with(update: ClientUpdate, task: ClientTask, spec: AdapterSpec) -> str | None:
    """Why an update must not count, or None. It is held against the task that was sent, name by name."""
    if update.num_examples < 1:
        return f"trained on {update.num_examples} examples"
    if not 0 < update.weight < math.inf:
        return f"trained on {update.num_tokens} tokens"
    expected = answer_part(task, spec).tensors()
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
    if update.layer_scores is not None and update.layer_scores.shape != (spec.num_layers,):
        return f"layer scores have shape {tuple(update.layer_scores.shape)}, expected ({spec.num_layers},)"
    given = int(task.trained.sum(axis=1).max())
    if update.rank is not None and not (isinstance(update.rank, int) and 1 <= update.rank <= given):
        return f"reported rank {update.rank!r}, expected 1 to {given}"
    return None


def collect(
    tasks: Sequence[ClientTask], answers: Iterator[ClientUpdate | ClientFailure], spec: AdapterSpec
) -> tuple[Answers, list[ClientFailure], Mapping[int, ClientUpdate]]:
    """Step 3's end: sort what arrived into usable updates and failures, both by client id, each client once.

    Returns the usable answers, the failures, and every update that arrived, by client id.
    """
    by_client = {task.client: task for task in tasks}
    arrived: dict[int, ClientUpdate] = {}
    failures: dict[int, ClientFailure] = {}
    for answer in answers:
        if answer.client not in by_client or answer.client in arrived or answer.client in failures:
            continue  # nobody asked, or answered already
        if isinstance(answer, ClientFailure):
            failures[answer.client] = answer
        elif answer.round == by_client[answer.client].round:  # else it is late: it answers another round
            arrived[answer.client] = answer
            if reason := problem_with(answer, by_client[answer.client], spec):
                failures[answer.client] = ClientFailure(answer.client, "rejected", reason)
    for client in by_client.keys() - arrived.keys() - failures.keys():
        failures[client] = ClientFailure(client, "missing", "no answer")
    usable = [(by_client[client], arrived[client]) for client in sorted(arrived.keys() - failures.keys())]
    return usable, [failures[client] for client in sorted(failures)], arrived
