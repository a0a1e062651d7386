"""Direct preference optimisation: the loss by hand, the reference, and steps against a plain loop."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from hellora.client.batches import training_batches
from hellora.client.evaluation import evaluate, fisher_scores
from hellora.client.train import train_client
from hellora.core.algebra import new_adapter
from hellora.core.exchange import Policy, TrainSettings
from hellora.model.learned import IGNORED
from hellora.model.resident import BaseModel
from hellora.tasks.preference import Preference

TASK = Preference(beta=0.5)
ROWS = Dataset.from_dict(
    {
        "prompt": ["we saw the boat", "the moon", "a bird and a star near", "the old field"],
        "chosen": ["near a wave", "is old", "the new moon", "with a stone"],
        "rejected": ["the the", "near a fish and a worm", "rain", "we saw"],
    }
)


@pytest.fixture
def llama(tiny_llama: Path) -> BaseModel:
    return bases.load(tiny_llama, TASK)


def log_probability(net: Any, ids: list[int], labels: list[int], weights: dict[str, Tensor] | None = None) -> Tensor:
    """log π of the labelled tokens of one text, the slow way: all logits, one text at a time."""
    given = {"input_ids": torch.tensor([ids])}
    logits = (net(**given) if weights is None else functional_call(net, weights, kwargs=given)).logits[0]
    logs = logits.log_softmax(-1)
    return torch.stack([logs[i - 1, t] for i, t in enumerate(labels) if t != IGNORED and i]).sum()


def margin_of(net: Any, example: Any, bare: Any, beta: float, weights: dict[str, Tensor] | None = None) -> Tensor:
    """β [(log π − log π₀)(chosen) − (log π − log π₀)(rejected)]."""
    sides = [
        log_probability(net, example[f"{side}_ids"], example[f"{side}_labels"], weights)
        - log_probability(bare, example[f"{side}_ids"], example[f"{side}_labels"]).detach()
        for side in ("chosen", "rejected")
    ]
    return beta * (sides[0] - sides[1])


def test_the_loss_and_the_metrics_are_those_of_the_formula(llama: BaseModel) -> None:
    adapter, bare = bases.acting_adapter(llama), copy.deepcopy(llama.net)
    task = Preference(beta=0.5, label_smoothing=0.1)
    found = evaluate(adapter, llama, task, ROWS, batch_size=3).metrics
    whole = bases.with_dense_weights(llama, adapter)
    margins = torch.stack([margin_of(whole, each, bare, 0.5) for each in task.encode(llama, ROWS).examples]).detach()
    losses = -0.9 * torch.log(torch.sigmoid(margins)) - 0.1 * torch.log(torch.sigmoid(-margins))
    assert found["loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert found["margin"] == pytest.approx(float(margins.mean()), abs=1e-5)
    assert found["accuracy"] == pytest.approx(float((margins > 0).double().mean()))
    assert found["chosen_reward"] - found["rejected_reward"] == pytest.approx(found["margin"], abs=1e-5)


def test_before_training_nothing_is_preferred(llama: BaseModel) -> None:
    new = new_adapter(llama.spec, llama.initial_head(), seed=0)
    found = evaluate(new, llama, TASK, ROWS, batch_size=4).metrics
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("policy", [Policy(), Policy(micro_batch=1)], ids=["whole", "micro"])
def test_steps_are_those_of_a_plain_loop(policy: Policy, llama: BaseModel) -> None:
    adapter, bare = bases.acting_adapter(llama), copy.deepcopy(llama.net)
    settings = TrainSettings(lr=1e-2, batch_size=2, steps=4)
    task = bases.task_of(llama, range(llama.spec.num_layers), adapter, lr=1e-2, batch_size=2, steps=4)
    update = train_client(replace(task, policy=policy), llama, TASK, ROWS)

    encoded = TASK.encode(llama, ROWS)
    factors = {n: (p.A.clone().requires_grad_(), p.B.clone().requires_grad_()) for n, p in adapter.pairs.items()}
    optimizer = torch.optim.AdamW([f for pair in factors.values() for f in pair], lr=1e-2, weight_decay=0.01)
    losses = []
    for indices in training_batches(encoded, settings, task.seed):
        weights = {
            f"{n}.weight": bare.get_submodule(n).weight + llama.spec.scale * B @ A for n, (A, B) in factors.items()
        }
        margins = [margin_of(bare, encoded.examples[i], bare, 0.5, weights) for i in indices]
        loss = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert update.metrics["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    for name, (A, B) in factors.items():
        assert_close(update.adapter.pairs[name].A, A.detach(), atol=1e-5, rtol=1e-5)
        assert_close(update.adapter.pairs[name].B, B.detach(), atol=1e-5, rtol=1e-5)


def test_the_reference_is_asked_for_once_and_only_of_what_is_seen(
    llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, asked = TASK.encode(llama, ROWS), []
    collate = Preference.collate
    monkeypatch.setattr(Preference, "collate", lambda *given: asked.append(len(given[2])) or collate(*given))
    for _ in range(2):
        TASK.before(llama, encoded, [1, 3, 1])
    assert asked == [1, 1]
    known = [not math.isnan(example["reference"][0]) for example in encoded.examples]
    assert known == [False, True, False, True]


def test_pairs_of_conversations_are_learned_from_the_answers_on(llama: BaseModel) -> None:
    ends = "{% if m.role == 'assistant' %}{{ '[SEP] ' }}{% endif %}"
    llama.processor.chat_template = f"{{% for m in messages %}}{{{{ m.content + ' ' }}}}{ends}{{% endfor %}}"
    asked = {"role": "user", "content": "we saw", "weight": 0}
    pair = {
        side: [[asked, {"role": "assistant", "content": text, "weight": 1}]]
        for side, text in (("chosen", "the boat"), ("rejected", "rain"))
    }
    (example,) = TASK.encode(llama, Dataset.from_dict(pair)).examples
    learned = [t for t in example["chosen_labels"] if t != IGNORED]
    assert llama.processor.decode(learned) == "the boat [SEP]"
    assert llama.processor.decode(example["rejected_ids"]) == "we saw rain [SEP]"


def test_pairs_of_which_a_cut_leaves_nothing_to_compare_do_not_count(llama: BaseModel) -> None:
    """One answer is gone, or both are the same up to the limit."""
    llama.processor.chat_template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    gone, alike = ("we saw the boat near a wave", "rain", "wind"), ("we saw", "the the rain", "the the wind")
    pairs: dict[str, list[Any]] = {"chosen": [], "rejected": []}
    for prompt, *answers in (gone, alike, ("we", "a", "is")):
        for side, text in zip(pairs, answers, strict=True):
            answer = {"role": "assistant", "content": text, "weight": 1}
            pairs[side].append([{"role": "user", "content": prompt, "weight": 0}, answer])
    task, rows = Preference(max_length=4), Dataset.from_dict(pairs)
    encoded = task.encode(llama, rows)
    assert (encoded.cut, encoded.lost) == (2, 2)
    assert "2 of 3 examples are longer than 4 tokens and are cut; 2 of them kept no token" in encoded.note()
    whole = evaluate(bases.acting_adapter(llama), llama, task, rows, batch_size=3).metrics
    alone = evaluate(bases.acting_adapter(llama), llama, task, rows.select([2]), batch_size=1).metrics
    assert whole == pytest.approx(alone, abs=1e-6)


def test_both_answers_have_as_much_of_the_prompt_before_them(llama: BaseModel) -> None:
    rows = Dataset.from_dict(
        {"prompt": ["we saw the old boat near a wave"], "chosen": ["rain"], "rejected": ["the wind and the moon"]}
    )
    (example,) = Preference(max_length=9).encode(llama, rows).examples
    before = [
        [t for t, label in zip(example[f"{side}_ids"], example[f"{side}_labels"], strict=True) if label == IGNORED]
        for side in ("chosen", "rejected")
    ]
    assert before[0] == before[1]
    assert len(example["rejected_ids"]) == 9


def test_layers_are_scored_on_preferences(llama: BaseModel) -> None:
    scores = fisher_scores(bases.acting_adapter(llama), llama, TASK, TASK.encode(llama, ROWS), batch_size=2)
    alone = [
        fisher_scores(bases.acting_adapter(llama), llama, TASK, TASK.encode(llama, ROWS.select([i])), batch_size=1)
        for i in range(len(ROWS))
    ]
    assert_close(torch.tensor(scores), torch.tensor(sum(alone) / len(alone)), rtol=1e-4, atol=1e-9)


def test_settings_are_checked(tmp_path: Path) -> None:
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"max_length": 2}):
        with pytest.raises(ValueError, match="must be"):
            Preference(**wrong)
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    assert Preference(chat_template=str(tmp_path / "mine.jinja")).chat_template == "{{ messages }}"
    assert json.dumps(Preference(chat_template="{{ messages }}").chat_template)
