"""The losses of tokens, chunk by chunk: as with all logits at once, whatever the model does with them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import LANGUAGE, SMALL, base_of, batch_of
from torch import Tensor, nn
from torch.testing import assert_close

from hellora.core.algebra import new_adapter
from hellora.core.exchange import Outputs, Policy
from hellora.model import output_layer
from hellora.model.policies import int8_activations
from hellora.model.resident import BaseModel
from hellora.tasks import Batch, Task
from hellora.tasks.causal_lm import IGNORED

MODELS = [*sorted(name for name, (task, *_) in SMALL.items() if task is LANGUAGE), "mamba"]
Way = Callable[[Task, BaseModel, Batch], Outputs]


def with_all_logits(task: Task, base: BaseModel, batch: Batch) -> Outputs:
    """The slow, obvious way."""
    return task.score(task.logits(base, batch), batch)


def in_chunks(task: Task, base: BaseModel, batch: Batch) -> Outputs:
    return task.outputs(base, batch)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens of 40 classes make a chunk."""
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 3 * 40 * 4)


def supervised_batch(task: Task, base: BaseModel, examples: int = 2, tokens: int = 8) -> Batch:
    """Prompts of other lengths, a text that is padded, and one of which the first token is supervised."""
    torch.manual_seed(1)
    batch = batch_of(task, base, examples, tokens)
    labels = batch["input_ids"].clone()
    labels[0, :3] = IGNORED
    labels[0, -1] = IGNORED
    labels[1:, 5] = IGNORED
    return {**batch, "labels": labels}


def gradients(way: Way, task: Task, base: BaseModel, batch: Batch, policy: Policy = Policy()) -> dict[str, Tensor]:
    """What a step finds for each trained factor, with the losses and counts."""
    adapter = new_adapter(base.spec, base.initial_head(), 0)
    for pair in adapter.pairs.values():
        pair.B.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
    row = torch.ones(base.spec.num_layers, base.spec.max_rank, dtype=torch.bool).numpy()
    with base.adapted(adapter, row, policy=policy) as adapted:
        base.net.eval()
        outputs = way(task, base, batch)
        torch.autograd.backward((outputs.loss_sums / outputs.weights).sum())
        found = {f"{name} {f}": getattr(m, f).grad for name, m in adapted.lora.items() for f in ("A", "B")}
    return {**found, "losses": outputs.loss_sums.detach(), "weights": outputs.weights}


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_all_logits(name: str) -> None:
    task, base = base_of(name)
    base.net.get_output_embeddings().weight.data.mul_(10.0)  # such that a soft cap matters
    batch = supervised_batch(task, base)
    found, expected = (gradients(way, task, base, batch) for way in (in_chunks, with_all_logits))
    assert base.output.chunked, "every model of the page is known"
    assert found.keys() == expected.keys()
    for what in expected:
        largest = max(1.0, float(expected[what].abs().max()))
        assert_close(found[what], expected[what], atol=1e-6 * largest, rtol=1e-5)


def test_the_vocabulary_is_never_there_for_all_tokens() -> None:
    """The output layer sees three tokens at a time, and no token without a target."""
    task, base = base_of("llama")
    seen: list[int] = []
    layer = base.net.get_output_embeddings()
    inner = layer.forward

    def forward(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return inner(x)  # type: ignore[no-any-return]

    layer.forward = forward
    outputs = task.outputs(base, supervised_batch(task, base))
    assert sum(seen) == int(outputs.weights.sum())
    assert seen == [3, 3, 3, 1]


def test_evaluation_goes_by_chunks_too() -> None:
    task, base = base_of("gemma2")
    batch = supervised_batch(task, base)
    with torch.no_grad():
        assert_close(in_chunks(task, base, batch).loss_sums, with_all_logits(task, base, batch).loss_sums)
    assert in_chunks(task, base, batch).logits is None


@pytest.mark.parametrize("policy", [Policy(recompute="all"), Policy(bf16=True)])
def test_under_policies(policy: Policy) -> None:
    task, base = base_of("gemma2")
    batch = supervised_batch(task, base)
    with torch.autocast("cpu", torch.bfloat16, enabled=policy.bf16):
        found, expected = (gradients(way, task, base, batch, policy) for way in (in_chunks, with_all_logits))
    for what in expected:
        bound = 0.02 * float(expected[what].abs().max())
        assert_close(found[what], expected[what], atol=bound if policy.bf16 else 1e-6, rtol=1e-5)


def test_what_a_chunk_keeps_is_not_rounded_to_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft cap's output would be: it is large enough, and an activation."""
    monkeypatch.setattr("hellora.model.policies.SMALLEST", 1)
    layer = nn.Linear(4, 40).requires_grad_(False)
    rows, targets = torch.randn(6, 4, requires_grad=True), torch.arange(6)
    x = rows * torch.ones(6, 4, requires_grad=True)
    with int8_activations(torch.Generator()):
        losses = output_layer.chunked_losses(layer, lambda z: torch.tanh(z / 3) * 3, x, targets)
    (found,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
    exact = torch.nn.functional.cross_entropy(torch.tanh(layer(x) / 3) * 3, targets, reduction="none")
    assert_close(losses, exact)
    assert_close(found, torch.autograd.grad(exact.sum(), x)[0])


def test_losses_may_be_weighted() -> None:
    """Backward scales each row by what becomes of its loss."""
    layer = nn.Linear(4, 40).requires_grad_(False)
    x, targets, weights = torch.randn(7, 4, requires_grad=True), torch.arange(7), torch.arange(7.0)
    losses = output_layer.chunked_losses(layer, None, x, targets)
    (found,) = torch.autograd.grad((losses * weights).sum(), x)
    exact = torch.nn.functional.cross_entropy(layer(x), targets, reduction="none")
    assert_close(found, torch.autograd.grad((exact * weights).sum(), x)[0])
    assert not found[0].any()


def test_an_output_layer_that_trains_gets_its_gradient() -> None:
    layer = nn.Linear(4, 40)
    x, targets = torch.randn(7, 4, requires_grad=True), torch.arange(7)
    wanted = (x, layer.weight, layer.bias)
    found = torch.autograd.grad(output_layer.chunked_losses(layer, None, x, targets).sum(), wanted)
    exact = torch.nn.functional.cross_entropy(layer(x), targets, reduction="sum")
    for one, other in zip(found, torch.autograd.grad(exact, wanted), strict=True):
        assert_close(one, other)


def changed(base: BaseModel, change: Callable[[Tensor], Tensor]) -> None:
    """Let a network do something to its logits that its config does not tell."""
    own = base.net.forward

    def forward(*rest: Any, **named: Any) -> Any:
        out = own(*rest, **named)
        out.logits = change(out.logits)
        return out

    base.net.forward = forward


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits.mul_(0.5),
        lambda logits: logits + 1.5 * torch.arange(40),
        lambda logits: logits[..., :39],
        lambda logits: logits.reshape(2, 8, 40) * 2,
    ],
    ids=["in place", "unknown", "cut", "by shape"],
)
def test_what_a_model_does_besides_is_found(change: Callable[[Tensor], Tensor]) -> None:
    task, base = base_of("llama")
    batch = supervised_batch(task, base)
    batch["labels"].clamp_(max=38)
    changed(base, change)
    with torch.no_grad():
        for _ in range(2):
            assert_close(in_chunks(task, base, batch).loss_sums, with_all_logits(task, base, batch).loss_sums)
    assert base.output.chunked is False


def test_a_model_without_an_output_layer_of_its_own_computes_all() -> None:
    task, base = base_of("llama")
    batch = supervised_batch(task, base)
    base.net.get_output_embeddings = lambda: None
    with torch.no_grad():
        assert_close(in_chunks(task, base, batch).loss_sums, with_all_logits(task, base, batch).loss_sums)
