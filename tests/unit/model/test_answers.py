"""Answers to several prompts at once are those to each."""

from pathlib import Path
from typing import Any

import bases
import pytest

import hellora.model.answers
from hellora.model.answers import answers, ended
from hellora.tasks.causal_lm import CausalLM

PROMPTS = ["we saw the boat", "the moon", "near the old star and the boat", "a wave"]


def test_a_batch_of_prompts_is_answered_like_each(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases.load(tiny_llama, CausalLM())
    prompts = [base.processor(text)["input_ids"] for text in PROMPTS]
    alone = answers(base, prompts, 5)
    asked: list[int] = []
    generate = base.net.generate

    def counting(**how: Any) -> Any:
        asked.append(len(how["input_ids"]))
        return generate(**how)

    monkeypatch.setattr(base.net, "generate", counting)
    assert answers(base, prompts, 5, at_once=3) == alone
    assert asked == [1, 2, 3, 1]  # the trial of padding, then two batches
    assert len({tuple(each) for each in alone}) > 1


def test_a_model_that_padding_acts_on_answers_one_by_one(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases.load(tiny_llama, CausalLM())
    prompts = [base.processor(text)["input_ids"] for text in PROMPTS]
    alone = answers(base, prompts, 5)
    forward = base.net.forward

    def without_mask(*args: Any, **how: Any) -> Any:
        return forward(*args, **{**how, "attention_mask": None})

    monkeypatch.setattr(base.net, "forward", without_mask)
    assert not hellora.model.answers.padding_is_harmless(base, prompts[1], prompts[2])
    assert answers(base, prompts, 5, at_once=4) == alone


def test_an_answer_ends_behind_its_end_of_text(tiny_llama: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    base.net.generation_config.eos_token_id = [7, 9]
    assert ended(base, [1, 9, 0, 0]) == [1, 9]
    assert ended(base, [1, 2]) == [1, 2]
    base.net.generation_config.eos_token_id = 2
    assert ended(base, [1, 2, 7]) == [1, 2]
