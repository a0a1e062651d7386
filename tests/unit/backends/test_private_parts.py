"""What is a client's own: on the wire of a deployment it does not travel, on that of a simulation nothing rounds it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import bits, random_adapter, task_for, tiny_spec, update_of

from hellora.backends.wire import flatten, pack_answer, pack_task, read_answer, to_bytes, unpack_answer, unpack_task
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, Factors, WireFormat
from hellora.core.types import Adapter
from hellora.methods.sharing import answer_part, crosses, with_own

SPEC = tiny_spec()
ROW = np.array([[True, False, True, False], [True] * 4, [False] * 4])
GLOBAL, OWN, VALUES = (random_adapter(SPEC, seed) for seed in range(3))
FORMATS: list[WireFormat] = ["fp32", "bf16", "int8"]
WAYS: list[tuple[str, Factors]] = [("local", "A"), ("local", "B"), ("aggregate", "A"), ("local", "both")]
every_way = pytest.mark.parametrize(("head", "shares"), WAYS)
every_format = pytest.mark.parametrize("format", FORMATS)


def task_of(head: Any, shares: Factors, **changes: Any) -> ClientTask:
    """A task of a deployment's later round, unless it is changed."""
    task = task_for(1, GLOBAL, ROW)
    return replace(task, head=head, shares=shares, **{"private": True, "kept_version": 3, **changes})


def own_of(tensors: dict[str, Any], task: ClientTask) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if not crosses(name, task)}


def answer_to(received: ClientTask, format: WireFormat) -> tuple[ClientUpdate, bytes]:
    """What a client trains that has put its own in place, and its answer as it travels."""
    update = update_of(with_own(received, OWN, SPEC), VALUES, SPEC)
    return update, pack_answer(update, received, SPEC, format)


@every_format
@every_way
def test_a_task_has_what_is_shared_and_a_head_only_once(head: str, shares: Factors, format: WireFormat) -> None:
    for first in (True, False):
        task = task_of(head, shares, kept_version=None if first else 3)
        packed = pack_task(task, format)
        received = unpack_task(packed)
        shared = {name: tensor for name, tensor in GLOBAL.tensors().items() if crosses(name, task)}
        got = received.adapter.tensors()
        assert {name: got[name].shape for name in shared} == {name: tensor.shape for name, tensor in shared.items()}
        if format == "fp32":
            assert bits({name: got[name] for name in shared}) == bits(shared)
        heads = [name for name in got if name.startswith("head.")]
        assert bool(heads) == (head != "local" or first)
        if head == "local" and first:
            assert bits({n: got[n] for n in heads}) == bits({n: GLOBAL.tensors()[n] for n in heads}), "as it is"
        for name, tensor in GLOBAL.tensors().items():
            if not crosses(name, task) and not name.startswith("head."):
                assert got[name].numel() == 0
                assert tensor.numpy().tobytes() not in packed
        whole = with_own(received, OWN, SPEC).adapter.tensors()
        assert bits(own_of(whole, task)) == bits(own_of(OWN.tensors(), task))
        assert whole.keys() == GLOBAL.tensors().keys()


@every_format
@every_way
def test_an_answer_has_what_is_shared_and_the_server_puts_its_own_in_place_of_the_rest(
    head: str, shares: Factors, format: WireFormat
) -> None:
    task = task_of(head, shares)
    update, data = answer_to(unpack_task(pack_task(task, format)), format)
    read = read_answer(data, task, SPEC)
    assert isinstance(read, ClientUpdate), read
    sent, trained, found = (each.tensors() for each in (answer_part(task, SPEC), update.adapter, read.adapter))
    assert bits(own_of(found, task)) == bits(own_of(sent, task))
    for name in own_of(trained, task):
        assert trained[name].contiguous().numpy().tobytes() not in data
    if format == "fp32":
        assert {n: bits({n: t}) for n, t in found.items() if crosses(n, task)} == {
            n: bits({n: t}) for n, t in trained.items() if crosses(n, task)
        }


@every_format
@every_way
def test_a_simulation_rounds_what_is_shared_and_nothing_else(head: str, shares: Factors, format: WireFormat) -> None:
    """Its server keeps what is a client's own, so that it travels, and ends as it does where it never leaves."""
    task = task_of(head, shares, private=False, kept_version=None)
    received = unpack_task(pack_task(task, format))
    assert bits(own_of(received.adapter.tensors(), task)) == bits(own_of(GLOBAL.tensors(), task))
    update = update_of(received, VALUES, SPEC)
    read = unpack_answer(pack_answer(update, received, SPEC, format), task, SPEC)
    assert isinstance(read, ClientUpdate)
    assert bits(own_of(read.adapter.tensors(), task)) == bits(own_of(update.adapter.tensors(), task))
    equal = bits(read.adapter.tensors()) == bits(update.adapter.tensors())
    assert equal == (format == "fp32")


@every_way
def test_both_worlds_round_alike(head: str, shares: Factors) -> None:
    """What is shared is rounded by numbers of its own, whatever travels beside it."""
    answers = []
    for private in (True, False):
        mine = GLOBAL if private else with_own(task_of(head, shares), OWN, SPEC).adapter
        task = replace(task_of(head, shares, private=private), adapter=mine)
        received = unpack_task(pack_task(task, "int8"))
        update = update_of(received, VALUES, SPEC)
        read = unpack_answer(pack_answer(update, received, SPEC, "int8"), task, SPEC)
        assert isinstance(read, ClientUpdate)
        both = {**received.adapter.tensors(), **{f"up {n}": t for n, t in read.adapter.tensors().items()}}
        answers.append(bits({n: t for n, t in both.items() if crosses(n.removeprefix("up "), task)}))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("stray", ["head.weight", "block.0.query.lora_B", "/bf16/block.0.query.lora_B"])
def test_an_answer_that_has_what_is_to_stay_is_refused(stray: str) -> None:
    task = task_of("local", "A")
    _, data = answer_to(unpack_task(pack_task(task)), "fp32")
    honest = read_answer(data, task, SPEC)
    assert isinstance(honest, ClientUpdate)
    tensors, scales = flatten(Adapter(honest.adapter.pairs))
    sent = {name: tensor for name, tensor in tensors.items() if name.endswith("lora_A")}
    fields = {
        "round": 0, "attempt": 0, "client": 1, "num_examples": 1, "num_tokens": None, "metrics": {}, "scales": scales,
        "delta": False,
    }  # fmt: skip
    assert isinstance(read_answer(to_bytes(sent, fields), task, SPEC), ClientUpdate)
    value = torch.zeros(6, 2).bfloat16() if stray.startswith("/bf16/") else torch.zeros(6, 2)
    answer = read_answer(to_bytes({**sent, stray: value}, fields), task, SPEC)
    name = stray.removeprefix("/bf16/")
    assert answer == ClientFailure(1, "rejected", f"its answer has {name}, which is to stay with it")
