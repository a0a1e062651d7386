"""Draws of tokens: from the right distribution, by the seed of each row, and texts that end an answer."""

import math
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from torch.testing import assert_close

from hellora.model.answers import answers
from hellora.model.sampling import GREEDY, Drawing, Generation, within_top_p
from hellora.tasks.causal_lm import CausalLM

PROMPTS = ["we saw the boat", "the moon", "near the old star and the boat", "a wave"]
LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
NOTHING = torch.zeros(1, 1)


def drawn(how: Generation, count: int = 4000) -> list[float]:
    """How often each of four tokens is drawn."""
    largest = Drawing(how, range(count))(NOTHING, LOGITS.expand(count, -1)).argmax(-1)
    return (torch.bincount(largest, minlength=4) / count).tolist()


def test_tokens_are_drawn_by_their_probability() -> None:
    assert drawn(Generation(1.0)) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    colder = [p**2 for p in (0.5, 0.25, 0.15, 0.1)]
    assert drawn(Generation(0.5)) == pytest.approx([p / sum(colder) for p in colder], abs=0.03)
    assert drawn(Generation(1.0, top_p=0.75)) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    assert drawn(Generation(1e-4)) == [1, 0, 0, 0]


@pytest.mark.parametrize(("top_p", "kept"), [(0.1, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.9, 3), (0.95, 4), (1.0, 4)])
def test_top_p_keeps_the_likeliest_that_together_reach_it(top_p: float, kept: int) -> None:
    shuffled = torch.stack([LOGITS, LOGITS.flip(0)])
    found = within_top_p(shuffled, top_p)
    expected = torch.where(torch.arange(4) < kept, LOGITS, -math.inf)
    assert_close(found, torch.stack([expected, expected.flip(0)]))


def test_a_row_is_answered_alike_whatever_is_beside_it(tiny_llama: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    prompts = [base.processor(text)["input_ids"] for text in PROMPTS]
    how = Generation(1.5, top_p=0.95, seed=3)
    alone = answers(base, prompts, 6, at_once=1, how=how)
    assert answers(base, prompts, 6, at_once=3, how=how) == alone
    assert answers(base, prompts[:2], 6, how=how) == alone[:2]
    assert answers(base, prompts, 6, how=Generation(1.5, top_p=0.95, seed=4)) != alone
    assert answers(base, [prompts[0]] * 2, 6, how=how)[0] != answers(base, [prompts[0]] * 2, 6, how=how)[1]
    assert answers(base, prompts, 6, how=Generation(1e-4)) == answers(base, prompts, 6)


def test_the_global_generator_is_not_touched(tiny_llama: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    state = torch.get_rng_state()
    answers(base, [base.processor("the moon")["input_ids"]], 3, how=Generation(1.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_answer_ends_before_a_stop(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases.load(tiny_llama, CausalLM())
    task = CausalLM(answer_tokens=12)
    whole = task.answer(base, bases.prompts(*PROMPTS))
    words = whole[0].split()
    steps: list[int] = []
    forward = base.net.forward

    def counting(*args: Any, **how: Any) -> Any:
        steps.append(1)
        return forward(*args, **how)

    monkeypatch.setattr(base.net, "forward", counting)
    stop = Generation(stop=("never said", words[3]))
    (said,) = task.answer(base, bases.prompts(PROMPTS[0]), stop)
    assert said == whole[0][: whole[0].index(words[3])]
    assert len(steps) == words.index(words[3]) + 1, "nothing is generated behind it"
    monkeypatch.undo()
    cut = [text[: text.index(words[3])] if words[3] in text else text for text in whole]
    assert task.answer(base, bases.prompts(*PROMPTS), stop) == cut
    monkeypatch.setattr("hellora.model.answers.AT_ONCE", 4)
    prompts = [base.processor(text)["input_ids"] for text in PROMPTS]
    tokens = answers(base, prompts, 12, at_once=4, how=stop)
    assert [stop.cut(base.processor.decode(each, skip_special_tokens=True)) for each in tokens] == cut


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": math.inf}, "temperature must be 0 or more"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p above 0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p above 0"),
        ({"top_p": 0.9}, "top_p means nothing where temperature is 0"),
        ({"stop": ("a", "")}, "stop has an empty text"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CausalLM(**settings)


def test_runs_are_greedy_whatever_predictions_do(tiny_llama: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    rows = bases.Dataset.from_dict({"prompt": PROMPTS, "response": PROMPTS})
    wild = CausalLM(answers=4, answer_tokens=5, temperature=2.0, stop=("the",))
    assert wild.answered(base, rows) == CausalLM(answers=4, answer_tokens=5).answered(base, rows)
    assert wild.generation == Generation(2.0, stop=("the",))
    assert CausalLM().generation == GREEDY
