"""Instructions: what is supervised, what is cut, the loss, generated answers."""

import math
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.testing import assert_close

from hellora.model.learned import IGNORED, asked_tokens
from hellora.model.resident import BaseModel
from hellora.tasks.causal_lm import CausalLM

TASK = CausalLM()


@pytest.fixture
def llama(tiny_llama: Path) -> BaseModel:
    return bases.load(tiny_llama, TASK)


@pytest.fixture
def ending(llama: BaseModel) -> BaseModel:
    """Its tokenizer has an end of text; the words around a prompt are [CLS] and [SEP]."""
    llama.processor.eos_token = "[MASK]"
    return llama


def instructions(*pairs: tuple[str, str]) -> Dataset:
    prompts, responses = zip(*pairs, strict=True)
    return Dataset.from_dict({"prompt": list(prompts), "response": list(responses)})


def text(base: BaseModel, ids: list[int]) -> str:
    said: str = base.processor.decode(ids)
    return said


ROWS = instructions(("we saw the boat", "near a wave"), ("the moon", "is old and near the new star"))


def test_only_the_response_and_the_end_are_supervised(ending: BaseModel) -> None:
    encoded = TASK.encode(ending, ROWS)
    assert encoded.lengths is not None
    assert encoded.lengths.tolist() == [10, 12]
    first = encoded.examples[0]
    assert text(ending, first["input_ids"]) == "[CLS] we saw the boat [SEP] near a wave [MASK]"
    assert first["labels"][:6] == [IGNORED] * 6
    assert text(ending, first["labels"][6:]) == "near a wave [MASK]"


def test_without_an_end_token_there_is_none(llama: BaseModel) -> None:
    assert llama.processor.eos_token_id is None
    assert text(llama, TASK.encode(llama, ROWS).examples[0]["input_ids"]) == "[CLS] we saw the boat [SEP] near a wave"


@pytest.mark.parametrize(
    ("limit", "expected", "supervised"),
    [
        (10, "[CLS] we saw the boat [SEP] near a wave [MASK]", 4),
        (8, "saw the boat [SEP] near a wave [MASK]", 4),  # the prompt loses its beginning
        (6, "the boat [SEP] near a wave", 3),  # the response keeps half
        (5, "the boat [SEP] near a", 2),
    ],
)
def test_a_prompt_is_cut_on_its_left_and_the_response_kept(
    limit: int, expected: str, supervised: int, ending: BaseModel
) -> None:
    (example,) = CausalLM(max_length=limit).encode(ending, instructions(("we saw the boat", "near a wave"))).examples
    assert text(ending, example["input_ids"]) == expected
    assert len(example["input_ids"]) == len(example["labels"]) <= limit
    assert sum(label != IGNORED for label in example["labels"]) == supervised
    assert example["labels"][-supervised:] == example["input_ids"][-supervised:]


def test_a_long_response_to_a_short_prompt_uses_what_is_free(ending: BaseModel) -> None:
    rows = instructions(("rain", "we saw the old boat near the wave"))
    (example,) = CausalLM(max_length=8).encode(ending, rows).examples
    assert text(ending, example["input_ids"]) == "[CLS] rain [SEP] we saw the old boat"


def test_batches_are_padded_on_the_right(ending: BaseModel) -> None:
    ending.processor.padding_side = "left"
    batch = TASK.collate(ending, TASK.encode(ending, ROWS).examples)
    assert batch["attention_mask"].tolist() == [[1] * 10 + [0] * 2, [1] * 12]
    assert batch["input_ids"][0, 10:].tolist() == [ending.processor.pad_token_id] * 2
    assert batch["labels"][0, 10:].tolist() == [IGNORED] * 2


def test_the_loss_is_hugging_faces_and_per_example(ending: BaseModel) -> None:
    batch = TASK.collate(ending, TASK.encode(ending, ROWS).examples)
    with torch.no_grad():
        theirs = ending.net(**batch).loss
        outputs = TASK.outputs(ending, batch)
        assert_close(outputs.loss_sums.sum() / outputs.weights.sum(), theirs, atol=1e-6, rtol=1e-6)
        assert outputs.weights.tolist() == [4, 8]
        assert outputs.predictions is None
        for i, example in enumerate(TASK.encode(ending, ROWS).examples):
            alone = ending.net(**TASK.collate(ending, [example])).loss
            assert_close(outputs.loss_sums[i] / outputs.weights[i], alone, atol=1e-5, rtol=1e-5)


def test_what_the_prompt_says_is_not_in_the_loss(ending: BaseModel) -> None:
    """Nothing is asked of the prompt's tokens: with a model that reads no context, the prompt changes nothing."""
    with torch.no_grad():
        for block in ending.net.model.layers:
            block.self_attn.o_proj.weight.zero_()
        losses = [
            TASK.outputs(ending, TASK.collate(ending, TASK.encode(ending, instructions((p, "rain wind"))).examples))
            for p in ("the boat", "a star and a moon")
        ]
    assert_close(losses[0].loss_sums, losses[1].loss_sums, atol=1e-5, rtol=1e-5)
    assert losses[0].weights.tolist() == losses[1].weights.tolist() == [3]


def test_perplexity() -> None:
    assert TASK.metrics(2.0, (), ()) == {"loss": 2.0, "perplexity": pytest.approx(math.e**2)}
    assert TASK.metrics(1e6, (), ())["perplexity"] < math.inf


def answering(base: BaseModel, answers: dict[str, str], seen: list[dict[str, Any]]) -> Any:
    """A stand-in for the network's generate that knows the answers by the prompt's last word."""

    def generate(input_ids: Tensor, **settings: Any) -> Tensor:
        prompt = base.processor.decode(input_ids[0], skip_special_tokens=True)
        answer = base.processor(answers[prompt.split()[-1]], add_special_tokens=False)["input_ids"]
        seen.append({"prompt": prompt, **settings})
        return torch.cat([input_ids, torch.tensor([answer])], dim=1)

    return generate


def test_rouge_l_by_hand(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "the boat near" is common to 5 and 4 words: precision 3/4, recall 3/5, F = 2/3; then 1; then 0."""
    rows = instructions(
        ("the wave", "we saw the boat near"), ("a star", "old moon"), ("rain", "new field"), ("never", "asked")
    )
    seen: list[dict[str, Any]] = []
    answers = {"wave": "is the boat near", "star": "old moon", "rain": "a worm"}
    monkeypatch.setattr(llama.net, "generate", answering(llama, answers, seen))
    task = CausalLM(answers=3, answer_tokens=5)
    assert task.answer_metrics(task.answered(llama, rows)) == {"rouge_l": pytest.approx((2 / 3 + 1 + 0) / 3)}
    assert [call["prompt"] for call in seen] == ["the wave", "a star", "rain"]
    assert all(call["max_new_tokens"] == 5 and call["do_sample"] is False for call in seen)
    assert TASK.answer_metrics(TASK.answered(llama, rows)) == {}, "off by default"


@pytest.mark.parametrize(
    ("every", "asked"),
    [(0, {0, 3, 6, 7}), (2, {0, 2, 4, 6, 7}), (9, {0, 7})],  # of 7 rounds, evaluated every 3 and at the end
)
def test_when_prompts_are_answered(every: int, asked: set[int]) -> None:
    task = CausalLM(answers=2, answers_every=every)
    assert {round for round in range(8) if task.asks(round, 7, evaluated=round in (0, 3, 6, 7))} == asked


@pytest.mark.parametrize("settings", [{"answers_every": 2}, {"answers": 2, "answers_every": -1}])
def test_answers_every_some_rounds_need_prompts(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="answers_every must be 0 or a number of rounds"):
        CausalLM(**settings)


def test_a_real_model_answers_greedily(llama: BaseModel) -> None:
    rows = instructions(("the wave", "we saw the boat"))
    task = CausalLM(answers=1, answer_tokens=4)
    (before,) = task.answered(llama, rows)
    assert (before.row, before.prompt, before.reference) == (0, "the wave", "we saw the boat")
    assert 0 <= task.answer_metrics([before])["rouge_l"] <= 1
    assert task.answered(llama, rows) == [before]


@pytest.mark.parametrize(("answer_tokens", "prompt", "answer"), [(4, 9, 4), (6, 6, 6), (12, 6, 6), (200, 6, 6)])
def test_answers_take_half_of_the_limit_at_most(
    answer_tokens: int, prompt: int, answer: int, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of 11 tokens and a limit of 12 or 13: positions never run out, and the prompt's end stays."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(llama.net, "generate", answering(llama, {"wave": "boat"}, seen))
    rows = instructions(("we saw the old boat near a new wave", "boat"))
    limit = prompt + answer
    CausalLM(max_length=limit, answers=1, answer_tokens=answer_tokens).answered(llama, rows)
    assert (seen[0]["attention_mask"].shape[1], seen[0]["max_new_tokens"]) == (prompt, answer)


def test_a_prompt_keeps_its_beginning_and_gets_no_end(ending: BaseModel) -> None:
    """A tokenizer that puts [SEP], as end of text, behind every text; the answer begins where the prompt stops."""
    ending.processor.bos_token, ending.processor.eos_token = "[CLS]", "[SEP]"
    assert text(ending, TASK.encode(ending, ROWS).examples[0]["input_ids"]) == "[CLS] we saw the boat near a wave [SEP]"
    short = CausalLM(max_length=8).encode(ending, ROWS)
    assert text(ending, short.examples[0]["input_ids"]) == "[CLS] saw the boat near a wave [SEP]"
    assert short.lengths is not None
    assert short.lengths.tolist() == [8, 8]


def test_tokens_are_counted_that_are_predicted(ending: BaseModel) -> None:
    encoded = TASK.encode(ending, ROWS)
    batch = TASK.collate(ending, encoded.examples)
    with torch.no_grad():
        assert encoded.num_tokens == int(TASK.outputs(ending, batch).weights.sum()) == 4 + 8


def test_logits_are_those_that_predict_supervised_tokens(ending: BaseModel) -> None:
    """The first example's response is its tokens 6 to 9, predicted at 5 to 8; the second's are 4 to 11."""
    examples = TASK.encode(ending, ROWS).examples
    batch = TASK.collate(ending, examples)
    with torch.no_grad():
        found = TASK.logits(ending, batch)
        everything = ending.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert found.shape == (4 + 8, ending.net.config.vocab_size)
    assert_close(found, torch.cat([everything[0, 5:9], everything[1, 3:11]]))


def test_of_a_conversation_that_is_too_long_the_longest_turn_loses_its_end(llama: BaseModel) -> None:
    """What was asked first, and what the template puts around it, stay."""
    llama.processor.chat_template = "{% for m in messages %}{{ '[CLS] ' + m.content + ' [SEP] ' }}{% endfor %}"
    turns = [("user", "we saw"), ("assistant", "a star"), ("user", "the old boat near a wave and the new moon")]
    rows = Dataset.from_dict({"messages": [[{"role": role, "content": said, "weight": 1} for role, said in turns]]})
    (whole,), (cut,) = asked_tokens(llama, rows, 99), asked_tokens(llama, rows, 13)
    assert len(whole) == 20
    assert len(cut) <= 13
    assert text(llama, cut).startswith("[CLS] we saw [SEP] [CLS] a star [SEP] [CLS] the old")
    assert text(llama, cut).endswith("[SEP]")
