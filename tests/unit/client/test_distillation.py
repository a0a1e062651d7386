"""Mutual distillation on a tiny BERT and a tiny Llama, against formulas by hand."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from datasets import Dataset
from factories import Lent, bits, round_of, task_for, update_of
from torch import Tensor

from hellora.client.distillation import (
    Distillation,
    Target,
    divergence,
    evaluate_ensemble,
    logits_of,
    mean_logits,
    soften,
    whole_row,
    with_rest,
)
from hellora.client.evaluation import evaluate
from hellora.client.train import seeded
from hellora.core.algebra import prototype_of, prototypes_of, with_prototypes
from hellora.core.errors import RunError
from hellora.core.metrics import UNLABELLED
from hellora.core.types import Adapter
from hellora.methods.aggregators.mutual_distillation import MutualDistillation
from hellora.model.resident import BaseModel
from hellora.tasks import Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.multi_label import MultiLabel

Array = npt.NDArray[np.float64]
TEXTS = bases.MEAN_POOLING


@pytest.fixture
def steady(tmp_path: Path) -> BaseModel:
    """A tiny BERT without dropout, its global_pair of rank 4."""
    return bases.load(tiny_models.save_bert(tmp_path / "steady", **bases.NO_DROPOUT), rank=4, alpha=8.0)


@pytest.fixture
def shaky(tiny_bert: Path) -> BaseModel:
    """A tiny BERT with dropout in its blocks and on the inputs of its pairs."""
    return bases.load(tiny_bert, rank=4, alpha=8.0, dropout=0.5)


def of_ranks(base: BaseModel, *smaller: int) -> Adapter:
    """A global_pair with prototypes, every one with values of its own."""
    rng = torch.Generator().manual_seed(5)
    made = {}
    for rank in (*smaller, base.spec.max_rank):
        adapter = prototype_of(bases.acting_adapter(base, seed=rank), rank, base.spec)
        head = {n: t + 0.5 * torch.randn(t.shape, generator=rng) for n, t in adapter.head.items()}
        made[rank] = replace(adapter, head=head)
    return replace(made.pop(base.spec.max_rank), prototypes=made)


def on_public(base: BaseModel, kind: Task = TEXTS, rows: Any = None, **settings: Any) -> Distillation:
    changed = {"kd_batch_size": 8, **settings}
    public = kind.encode(base, bases.texts(12) if rows is None else rows)
    return Distillation(MutualDistillation(**changed), base, kind, public)


def distilled(distillation: Distillation, adapter: Adapter, seed: int) -> Adapter:
    """An adapter and its prototypes after they have taught each other, none of them trained by anybody."""
    students = prototypes_of(adapter, distillation.base.spec)
    return with_prototypes(distillation.distil(students, distillation.settings.teachers(students, []), seed))


def batches_of(distillation: Distillation, seed: int) -> list[dict[str, Tensor]]:
    return list(distillation.batches(seed))


def said(adapter: Adapter, base: BaseModel, batch: dict[str, Tensor]) -> Array:
    """The logits of an adapter that is merged into the weights, as evaluation has it."""
    with torch.no_grad(), base.adapted(adapter):
        return TEXTS.logits(base, batch).double().numpy()


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- one step


@pytest.mark.parametrize(
    ("include_self", "ensemble", "weights"),
    [(True, "uniform", (1, 1, 1)), (True, "rank", (1, 2, 4)), (False, "rank", (1, 2, 4))],
)
def test_one_step_is_the_formulas(
    include_self: bool, ensemble: Any, weights: tuple[int, ...], steady: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plain SGD in the place of AdamW: θ - lr · ∂L/∂z · ∂z/∂θ, with ∂L/∂z from the softmaxes in numpy:

    λ_ce (softmax(z) - y) / n + λ_kd · T · (softmax(z / T) - softmax(z̄ / T)) / n
    """
    monkeypatch.setattr("hellora.client.distillation.make_optimizer", lambda p, s: torch.optim.SGD(p, lr=s.lr))
    distillation = on_public(
        steady,
        kd_steps=1,
        temperature=3.0,
        kd_weight=0.7,
        ce_weight=0.4,
        kd_lr=500.0,
        include_self=include_self,
        ensemble=ensemble,
    )
    adapter = of_ranks(steady, 1, 2)
    result = prototypes_of(distilled(distillation, adapter, seed=3), steady.spec)
    (batch,) = batches_of(distillation, seed=3)
    before = prototypes_of(adapter, steady.spec)
    logits = {rank: said(prototype, steady, batch) for rank, prototype in before.items()}
    for rank, prototype in before.items():
        teachers = [(w, logits[r]) for r, w in zip(logits, weights, strict=True) if include_self or r != rank]
        mean = sum(w * z for w, z in teachers) / sum(w for w, _ in teachers)
        truth = np.eye(3)[batch["labels"].numpy()]
        z, n = logits[rank], len(truth)
        slope = 0.4 * (softmax(z) - truth) / n + 0.7 * 3.0 * (softmax(z / 3) - softmax(mean / 3)) / n
        with steady.adapted(prototype, whole_row(steady.spec, rank), train_head=True, cut=True) as adapted:
            TEXTS.logits(steady, batch).backward(torch.from_numpy(slope).float())  # type: ignore[no-untyped-call]
            for name, module in adapted.lora.items():
                pair, got = prototype.pairs[name], result[rank].pairs[name]
                assert module.A.grad is not None
                assert module.B.grad is not None
                torch.testing.assert_close(got.A, pair.A - 500 * module.A.grad, atol=5e-5, rtol=1e-4)
                torch.testing.assert_close(got.B, pair.B - 500 * module.B.grad, atol=5e-5, rtol=1e-4)
                assert (got.rank, got.scale) == (rank, pair.scale)
                assert not torch.allclose(got.B, pair.B, atol=1e-3), "the step must matter"
            for name, parameter in adapted.head.items():
                assert parameter.grad is not None
                moved = prototype.head[name] - 500 * parameter.grad
                torch.testing.assert_close(result[rank].head[name], moved, atol=5e-5, rtol=1e-4)


def test_the_divergence_in_numbers() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = ½ ln 2 + ½ ln ⅔; T² = 4 with logits twice as large."""
    target = soften(torch.zeros(1, 2), 2.0, None)
    logits = 2 * torch.tensor([[0.0, np.log(3.0)]])
    expected = 4 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert divergence(target, logits, 2.0).tolist() == [pytest.approx(expected, rel=1e-5)]
    assert divergence(target, torch.zeros(1, 2), 2.0).tolist() == [0.0]


def test_the_mean_of_logits_is_weighted() -> None:
    assert mean_logits([torch.tensor([[0.0, 4.0]]), torch.tensor([[8.0, 0.0]])], [3.0, 1.0]).tolist() == [[2.0, 3.0]]


# --- what is taught, by whom


def test_teachers_are_in_eval_mode(shaky: BaseModel) -> None:
    """Neither the network's dropout nor the adapter's touches what they say."""
    adapter = of_ranks(shaky, 2)
    distillation = on_public(shaky, temperature=1.0, kd_steps=2)
    prototypes = prototypes_of(adapter, shaky.spec)
    targets = distillation.targets(prototypes, {2: 1.0, 4: 1.0}, seed=1)
    for batch, target in zip(batches_of(distillation, seed=1), targets[2], strict=True):
        expected = softmax(sum(said(p, shaky, batch) for p in prototypes.values()) / 2)
        np.testing.assert_allclose(target.log_p.exp().numpy(), expected, rtol=1e-4)


def test_students_train_with_dropout_that_the_seed_decides(shaky: BaseModel, tiny_bert: Path) -> None:
    adapter = of_ranks(shaky, 2)
    with_dropout = distilled(on_public(shaky), adapter, seed=1)
    torch.rand(7)  # whatever was drawn before
    assert bits(distilled(on_public(shaky), adapter, seed=1).tensors()) == bits(with_dropout.tensors())
    without = distilled(on_public(bases.load(tiny_bert, rank=4, alpha=8.0)), adapter, seed=1)
    assert bits(without.tensors()) != bits(with_dropout.tensors())


def test_every_student_and_round_has_its_own_seed(shaky: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the generator of everybody else is as it was."""
    seeds: list[int] = []

    def recorded(seed: int, device: torch.device) -> AbstractContextManager[None]:
        seeds.append(seed)
        return seeded(seed, device)

    monkeypatch.setattr("hellora.client.distillation.seeded", recorded)
    before = torch.get_rng_state()
    for seed in (1, 2):
        distilled(on_public(shaky), of_ranks(shaky, 1, 2), seed)
    assert len(set(seeds)) == len(seeds) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_the_batches(steady: BaseModel) -> None:
    adapter = of_ranks(steady, 2)
    one, two = (distilled(on_public(steady, kd_steps=1), adapter, seed) for seed in (1, 2))
    assert bits(one.tensors()) != bits(two.tensors())


@pytest.mark.parametrize(("kd_steps", "expected"), [(1, [8]), (2, [4, 8]), (99, [4, 8])])
def test_a_round_is_so_many_steps_or_one_pass(kd_steps: int, expected: list[int], steady: BaseModel) -> None:
    batches = batches_of(on_public(steady, kd_steps=kd_steps), seed=0)
    assert sorted(len(batch["labels"]) for batch in batches)[-len(expected) :] == sorted(expected)[-len(batches) :]
    assert len(batches) == len(expected)


def test_every_prototype_learns_whoever_trained_it(steady: BaseModel) -> None:
    """Without any answer in the round all ranks still teach and learn, and come closer to one another."""
    adapter = of_ranks(steady, 1, 2)
    distillation = on_public(steady, kd_steps=99, kd_batch_size=1, kd_lr=1e-2, ce_weight=0.0)
    result = distilled(distillation, adapter, seed=0)
    assert list(result.prototypes) == [1, 2]

    def spread(of: Adapter) -> float:
        batches = batches_of(distillation, seed=0)
        found = [np.concatenate([said(p, steady, b) for b in batches]) for p in prototypes_of(of, steady.spec).values()]
        return float(np.var([softmax(z) for z in found], axis=0).mean())

    assert spread(result) < 0.6 * spread(adapter)
    for rank, prototype in prototypes_of(result, steady.spec).items():
        old = prototype_of(adapter, rank, steady.spec).tensors()
        assert all(not torch.equal(tensor, old[name]) for name, tensor in prototype.tensors().items())


def test_a_lone_adapter_is_not_taught(steady: BaseModel) -> None:
    adapter, trained = of_ranks(steady), bases.row_of(steady, range(4))
    task = task_for(0, adapter, trained)
    update = update_of(task, bases.acting_adapter(steady, seed=1), steady.spec)
    lent = Lent(taught=lambda *_: pytest.fail("there is nobody to learn from"))
    context = replace(round_of(adapter, steady.spec), lent=lent)
    result, _ = MutualDistillation().aggregate(context, [(task, update)])
    assert bits(result.tensors()) == bits(update.adapter.tensors())


def test_without_labels_there_is_no_cross_entropy(steady: BaseModel) -> None:
    adapter = of_ranks(steady, 2)
    unlabelled = bases.texts(12).remove_columns("label").add_column("label", [UNLABELLED] * 12)
    result = distilled(on_public(steady, rows=unlabelled, ce_weight=0.3), adapter, seed=0)
    expected = distilled(on_public(steady, ce_weight=0.0), adapter, seed=0)
    assert bits(result.tensors()) == bits(expected.tensors())
    assert bits(distilled(on_public(steady, ce_weight=0.3), adapter, seed=0).tensors()) != bits(expected.tensors())


def test_a_frozen_head_stays(steady: BaseModel) -> None:
    adapter = of_ranks(steady, 2)
    result = distilled(replace(on_public(steady), train_head=False), adapter, seed=0)
    assert bits(result.head) == bits(adapter.head)
    assert bits(result.prototypes[2].head) == bits(adapter.prototypes[2].head)
    name = next(iter(adapter.pairs))
    assert not torch.equal(result.pairs[name].B, adapter.pairs[name].B)


def test_the_base_and_the_inputs_are_untouched(shaky: BaseModel) -> None:
    adapter = of_ranks(shaky, 1, 2)
    assert shaky.head is not None

    def everything() -> dict[Any, Any]:
        weights = {**shaky.net.state_dict(), **{f"head.{n}": t for n, t in shaky.head.state_dict().items()}}  # type: ignore[union-attr]
        return bits({**weights, **{f"adapter.{n}": t for n, t in adapter.tensors().items()}})

    modules = [(name, id(module), module.training) for name, module in shaky.net.named_modules()]
    parameters = [(name, id(p), p.requires_grad) for name, p in shaky.net.named_parameters()]
    before = everything()
    distilled(on_public(shaky), adapter, seed=0)
    assert everything() == before
    assert [(name, id(module), module.training) for name, module in shaky.net.named_modules()] == modules
    assert [(name, id(p), p.requires_grad) for name, p in shaky.net.named_parameters()] == parameters


def test_a_loss_that_is_no_number_stops_the_run(steady: BaseModel) -> None:
    adapter = of_ranks(steady, 2)
    broken = replace(adapter, head={name: tensor * torch.inf for name, tensor in adapter.head.items()})
    with pytest.raises(
        RunError, match=r"prototype of rank \d says nan, and teaches nothing: the adapter is not finite \(head"
    ):
        distilled(on_public(steady), broken, seed=0)


# --- language models


def test_what_is_not_at_the_top_is_one_mass() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    target = soften(logits, 2.0, 4)
    assert target.top is not None
    assert target.log_p.shape == (5, 5)
    p = softmax(logits.double().numpy() / 2)
    for row, named, found in zip(p, target.top.tolist(), target.log_p.exp().tolist(), strict=True):
        assert sorted(named) == sorted(np.argsort(row)[-4:].tolist())
        np.testing.assert_allclose(found, [*row[named], row.sum() - row[named].sum()], rtol=1e-5)
        assert sum(found) == pytest.approx(1, abs=1e-6)


def test_a_lumped_divergence_by_hand_and_its_gradient() -> None:
    """∂/∂z = T · (q - r), where r shares out the mass of the rest in proportion to q."""
    rng = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(3, 30, generator=rng), torch.randn(3, 30, generator=rng).requires_grad_()
    target = soften(teacher, 2.0, 5)
    assert target.top is not None
    p, q = softmax(teacher.double().numpy() / 2), softmax(student.detach().double().numpy() / 2)
    found = divergence(target, student, 2.0)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    for i, top in enumerate(target.top.tolist()):
        rest = [c for c in range(30) if c not in top]
        parts = [(p[i, c], q[i, c]) for c in top] + [(p[i, rest].sum(), q[i, rest].sum())]
        assert float(found[i].detach()) == pytest.approx(4 * sum(a * np.log(a / b) for a, b in parts), rel=1e-4)
        shared = p[i].copy()
        shared[rest] = p[i, rest].sum() * q[i, rest] / q[i, rest].sum()
        np.testing.assert_allclose(student.grad[i].numpy(), 2 * (q[i] - shared), atol=1e-6)
        assert (student.grad[i][rest] != 0).all(), "the rest learns too"


@pytest.mark.parametrize("top_k", [30, 31, None])
def test_a_top_of_everything_is_the_whole_distribution(top_k: int | None) -> None:
    target = soften(torch.randn(3, 30), 2.0, top_k)
    assert target.top is None
    assert target.log_p.shape == (3, 30)


def test_the_rest_of_a_sure_model_is_finite() -> None:
    """A rest of no mass in float32 gives no nan, in the value or in the gradient."""
    logits = torch.tensor([[300.0, 0.0, 0.0, -5.0]], requires_grad=True)
    log_p = with_rest(logits.log_softmax(-1), torch.tensor([[0]]))
    assert torch.isfinite(log_p).all()
    found = divergence(soften(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 1.0, 1), logits, 1.0)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()


SENTENCES = [text for text, _ in tiny_models.sentences(24)]
INSTRUCTIONS = Dataset.from_dict({"prompt": SENTENCES, "response": [" ".join(t.split()[-2:]) for t in SENTENCES]})


def test_language_models_teach_each_other(tiny_llama: Path) -> None:
    """Of 33 words each teacher names 8. The students come closer to what the ensemble said at first."""
    base = bases.load(tiny_llama, CausalLM(), rank=4, alpha=8.0)
    adapter = of_ranks(base, 1, 2)
    distillation = on_public(base, CausalLM(), INSTRUCTIONS, top_k=8, kd_lr=2e-3, kd_batch_size=2, ce_weight=0.0)
    (kept, *_) = distillation.targets(prototypes_of(adapter, base.spec), {1: 1.0, 2: 1.0, 4: 1.0}, seed=0).values()
    supervised = CausalLM().encode(base, INSTRUCTIONS).num_tokens
    assert sum(len(target.log_p) for target in kept) == supervised
    assert all(target.top is not None and target.top.shape[1] == 8 for target in kept)

    def distance(of: Adapter) -> list[float]:
        batches = batches_of(distillation, seed=0)
        return [
            sum(
                float(divergence(t, logits_of(p, base, CausalLM(), b), 2.0).sum())
                for t, b in zip(kept, batches, strict=True)
            )
            for p in prototypes_of(of, base.spec).values()
        ]

    result = distilled(distillation, adapter, seed=0)
    assert all(after < before for before, after in zip(distance(adapter), distance(result), strict=True))
    assert result.head == {}


def test_classes_are_never_lumped(steady: BaseModel) -> None:
    targets = on_public(steady, top_k=1).targets(prototypes_of(of_ranks(steady, 2), steady.spec), {2: 1, 4: 1}, seed=0)
    assert all(isinstance(t, Target) and t.top is None and t.log_p.shape[1] == 3 for t in targets[2])


# --- evaluation


def test_labels_are_taught_as_so_many_coins(tiny_bert: Path) -> None:
    """What is taught of each is σ(z̄ / T), and of its absence the rest."""
    rows = bases.texts(12).remove_columns("label").add_column("targets", [[1, 0, 1]] * 12)
    kind = MultiLabel()
    base = bases.load(tiny_bert, kind)
    teaching, adapter = on_public(base, kind, rows, temperature=2.0), bases.acting_adapter(base)
    (target, *_) = teaching.targets({3: adapter}, {3: 1.0}, seed=0)[3]
    (batch, *_) = batches_of(teaching, seed=0)
    z = torch.tensor(said(adapter, base, batch))  # a text's logits are those of one with a class
    torch.testing.assert_close(target.log_p.exp()[..., 0].double(), (z / 2).sigmoid().double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(target.log_p.exp().sum(-1), torch.ones(z.shape))
    taught = distilled(teaching, of_ranks(base, 1), seed=0)
    assert all(bool(tensor.isfinite().all()) for tensor in taught.tensors().values())


def test_the_ensemble_is_the_mean_of_the_logits(steady: BaseModel) -> None:
    adapter, rows = of_ranks(steady, 1, 2), bases.texts(30, seed=4)
    prototypes = list(prototypes_of(adapter, steady.spec).values())
    batch = TEXTS.collate(steady, TEXTS.encode(steady, rows).examples)
    z = sum(said(p, steady, batch) for p in prototypes) / 3
    labels = np.array(rows["label"])
    encoded = TEXTS.encode(steady, rows)
    found = evaluate_ensemble(prototypes, steady, TEXTS, encoded, 7).metrics
    assert found["accuracy"] == pytest.approx((z.argmax(-1) == labels).mean())
    assert found["loss"] == pytest.approx(-np.log(softmax(z))[np.arange(30), labels].mean(), rel=1e-5)
    alone = evaluate_ensemble(prototypes[:1], steady, TEXTS, encoded, 7).metrics
    assert alone == pytest.approx(evaluate(prototypes[0], steady, TEXTS, rows, 7).metrics, rel=1e-5)
