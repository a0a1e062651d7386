"""What every rule of local training in the folder must keep to, on a tiny real model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import bases
import numpy as np
import pytest
import tiny_models
import torch
from factories import assert_is_a_strategy_file, bits, strategies, variants

import hellora.methods.local_training
from hellora.client.rules import shapes_of
from hellora.client.train import train_client
from hellora.core.exchange import ClientTask, ClientUpdate, problem_with_named
from hellora.core.state import owned, select
from hellora.core.types import ClientProfile
from hellora.methods.context import RoundContext
from hellora.methods.local import prefixed
from hellora.methods.local_training.fed_dyn import FedDyn
from hellora.methods.local_training.fed_prox import FedProx
from hellora.methods.local_training.hetlora import Hetlora
from hellora.methods.local_training.layer_scores import LayerScores
from hellora.methods.local_training.local_loss import LocalLoss
from hellora.methods.local_training.logit_adjustment import LogitAdjustment
from hellora.methods.local_training.plain import Plain
from hellora.methods.local_training.prelort import Prelort
from hellora.methods.local_training.scaffold import Scaffold
from hellora.methods.strategies import LocalTraining
from hellora.model.resident import BaseModel

KIND = bases.MEAN_POOLING
ROWS = bases.texts(10)
CLIENT = ClientProfile(0, 10)
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0}  # which SCAFFOLD needs
RULES = list(variants(hellora.methods.local_training, LocalTraining))
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
AT_STRENGTH_0 = [
    (FedProx(mu=0),),
    (FedProx(mu=0, form="product"),),
    (LogitAdjustment(tau=0),),
    (LogitAdjustment(tau=0, adjustment="fedlc"),),
    (LogitAdjustment(adjustment="fedrs", absent_scale=1),),
    (FedDyn(alpha=0),),
    (Prelort(truncations=()),),
    (LocalLoss(),),
    (Hetlora(tail_penalty=0),),
    (Plain(),),
    (LayerScores(),),
    (Scaffold(),),  # as long as all its variates are 0
    (FedProx(mu=0), LogitAdjustment(tau=0), Hetlora(tail_penalty=0), Plain(), LayerScores(), Scaffold()),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Four layers with dropout."""
    return bases.load(tiny_models.save_bert(tmp_path_factory.mktemp("bert"), hidden_dropout_prob=0.1), dropout=0.1)


def task_for(
    base: BaseModel,
    rules: Sequence[LocalTraining],
    states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    kept: Mapping[str, torch.Tensor] | None = None,
    **changes: Any,
) -> ClientTask:
    """A task with what the rules brief and declare, as the server makes it."""
    task = replace(bases.task_of(base, bases.mixed_row(base), **SGD), **changes)
    shapes = shapes_of(task, base)
    context = RoundContext(0, 9, 0, base.spec, (CLIENT,), able=(CLIENT,), adapter=task.adapter)
    brief: dict[str, torch.Tensor] = {}
    for rule in rules:
        own = replace(context, state=(states or {}).get(rule.name, {}))
        brief |= owned(rule.brief(own, CLIENT, shapes), rule.name)
    declared = prefixed({rule.name: rule.declares(shapes) for rule in rules})
    return replace(task, brief=brief, kept=kept or {}, declared=declared)


def train(base: BaseModel, rules: Sequence[LocalTraining], **more: Any) -> ClientUpdate:
    return train_client(task_for(base, rules, **more), base, KIND, ROWS, rules)


@pytest.mark.parametrize("head", ["aggregate", "frozen"])
@pytest.mark.parametrize("rules", AT_STRENGTH_0, ids=repr)
def test_at_strength_0_it_is_plain_training_bit_for_bit(
    rules: tuple[LocalTraining, ...], head: Any, base: BaseModel
) -> None:
    plain, update = train(base, (), head=head), train(base, rules, head=head)
    assert bits(update.adapter.tensors()) == bits(plain.adapter.tensors())
    assert update.metrics["loss"] == plain.metrics["loss"]
    row = torch.tensor(bases.mixed_row(base)[1])
    start = bases.acting_adapter(base).pairs
    moved = {name: pair for name, pair in plain.adapter.pairs.items() if base.spec.layer_of[name] == 1}
    assert row.all()
    assert moved
    assert all((pair.B != start[name].B).any() for name, pair in moved.items()), "it must train"


@every_rule
@pytest.mark.parametrize("factors", ["both", "B"])
@pytest.mark.parametrize("head", ["aggregate", "frozen"])
def test_it_declares_all_that_it_is_told_and_tells_and_keeps(
    rule: LocalTraining, factors: Any, head: Any, base: BaseModel
) -> None:
    """Of the declared names, and of the declared shapes and types; train_client refuses anything else."""
    first = task_for(base, [rule], factors=factors, head=head)
    assert problem_with_named(first.brief, first.declared.brief, "brief") is None
    update = train_client(first, base, KIND, ROWS, [rule])
    assert problem_with_named(update.report, first.declared.report, "report") is None
    assert problem_with_named(update.kept, first.declared.kept, "kept tensor") is None
    assert all(name.startswith(f"{rule.name}/") for name in (*first.brief, *update.report, *update.kept))
    for tensor in (*update.report.values(), *update.kept.values()):
        assert (tensor.device.type, tensor.requires_grad) == ("cpu", False)
    second = task_for(base, [rule], kept=update.kept, factors=factors, head=head)
    again = train_client(second, base, KIND, ROWS, [rule])
    assert problem_with_named(again.kept, second.declared.kept, "kept tensor") is None


def test_what_was_not_declared_is_refused(base: BaseModel) -> None:
    class Chatty(Plain):
        def end(self, local: Any, carry: Any) -> Any:
            return {"secret": torch.zeros(1)}, {}

    class Hoarder(Plain):
        def end(self, local: Any, carry: Any) -> Any:
            return {}, {"secret": torch.zeros(1)}

    for rule, what in ((Chatty(), "report"), (Hoarder(), "kept tensor")):
        with pytest.raises(ValueError, match=rf"^{what} \S+/secret was not declared$"):
            train(base, [rule])
    task = replace(task_for(base, [Plain()]), brief={"plain/secret": torch.zeros(1)})
    with pytest.raises(ValueError, match="the server's brief plain/secret was not declared"):
        train_client(task, base, KIND, ROWS, [Plain()])


@every_rule
def test_what_it_kept_and_was_told_is_not_mutated(rule: LocalTraining, base: BaseModel) -> None:
    kept = train(base, [rule]).kept
    task = task_for(base, [rule], kept=kept)
    inputs = [task.brief, task.kept, task.adapter.tensors()]
    before = [bits(tensors) for tensors in inputs]
    train_client(task, base, KIND, ROWS, [rule])
    assert [bits(tensors) for tensors in inputs] == before


@every_rule
def test_the_seed_decides_every_bit(rule: LocalTraining, base: BaseModel) -> None:
    def trained() -> Any:
        torch.rand(3)
        update = train(base, [rule])
        return bits(update.adapter.tensors()), bits(update.report), bits(update.kept)

    assert trained() == trained()


def test_rules_of_a_list_have_their_own_named_tensors(base: BaseModel) -> None:
    """All rules at once: what each tells and keeps has its own name, and is what it declared alone."""
    rules = [cls() for _, cls in strategies(hellora.methods.local_training, LocalTraining)]
    update = train(base, rules)
    shapes = shapes_of(task_for(base, rules), base)
    for rule in rules:
        declared = rule.declares(shapes)
        assert problem_with_named(select(update.report, rule.name), declared.report, "report") is None
        assert problem_with_named(select(update.kept, rule.name), declared.kept, "kept") is None
    assert {name.partition("/")[0] for name in update.report} <= {rule.name for rule in rules}
    assert {name.partition("/")[0] for name in update.kept} <= {rule.name for rule in rules}


def test_rules_that_leave_training_alone_tell_the_same_in_company(base: BaseModel) -> None:
    """Scores that are read before variates change the gradients, variates that others do not touch."""
    together = train(base, (LayerScores(), Scaffold(), Hetlora(tail_penalty=0), Plain()))
    alone = {rule.name: train(base, (rule,)) for rule in (LayerScores(), Scaffold())}
    for name, update in alone.items():
        assert bits(select(together.report, name)) == bits(select(update.report, name))
        assert bits(select(together.kept, name)) == bits(select(update.kept, name))
    assert together.report.keys() == {key for update in alone.values() for key in update.report}


def test_rules_see_gradients_in_their_order(base: BaseModel) -> None:
    """Scores before SCAFFOLD's correction are those of the loss, after it those of the step that is taken."""
    c = {name: torch.full_like(tensor, 0.5) for name, tensor in bases.acting_adapter(base).tensors().items()}
    states = {"scaffold": c}
    one_step = {"train": replace(bases.task_of(base, [1]).train, steps=1, **SGD)}
    before = train(base, (LayerScores(), Scaffold()), states=states, **one_step).report["layer_scores/scores"]
    after = train(base, (Scaffold(), LayerScores()), states=states, **one_step).report["layer_scores/scores"]
    plain = train(base, (LayerScores(),), **one_step).report["layer_scores/scores"]
    assert bits({0: before}) == bits({0: plain}) != bits({0: after})
    told = np.isfinite(after.numpy())
    assert (after.numpy()[told] != before.numpy()[told]).all()


def test_one_documented_frozen_dataclass_per_module() -> None:
    for module, cls in strategies(hellora.methods.local_training, LocalTraining):
        assert_is_a_strategy_file(module, cls)
