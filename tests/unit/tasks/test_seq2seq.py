"""Sources and targets: what is cut, the loss, what is said; layers, and what is refused."""

import math
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from torch.testing import assert_close

from hellora.core.errors import InputError
from hellora.model.answers import answers
from hellora.model.resident import BaseModel
from hellora.tasks.seq2seq import Seq2Seq

TASK = Seq2Seq()
ROWS = bases.instructions(
    ["we saw the boat", "the old moon near a wave and we saw", "rain"],
    ["near a wave", "is old and near the new star", "a cloud and a bird near the wind with the star"],
)


@pytest.fixture(scope="module")
def bart(tiny_bart: Path) -> BaseModel:
    return bases.load(tiny_bart, TASK)


def text(base: BaseModel, ids: list[int]) -> str:
    said: str = base.processor.decode(ids)
    return said


def test_layers_are_the_encoders_and_then_the_decoders(bart: BaseModel) -> None:
    """What attends to the encoder belongs to its block of the decoder."""
    places = ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1")
    assert bart.spec.layers == tuple(f"model.{place}" for place in places)
    assert bart.spec.layer_of["model.decoder.layers.1.encoder_attn.q_proj"] == 3


def test_both_are_cut_at_their_ends_and_that_is_said(bart: BaseModel) -> None:
    encoded = Seq2Seq(max_length=6, max_target_length=7).encode(bart, ROWS)
    assert [text(bart, each["input_ids"]) for each in encoded.examples] == [
        "[CLS] we saw the boat [SEP]",
        "[CLS] the old moon near [SEP]",
        "[CLS] rain [SEP]",
    ]
    assert [text(bart, each["labels"]) for each in encoded.examples] == [
        "[CLS] near a wave [SEP]",
        "[CLS] is old and near the [SEP]",
        "[CLS] a cloud and a bird [SEP]",
    ]
    assert encoded.lengths is not None
    assert encoded.lengths.tolist() == [6, 7, 7]
    assert encoded.num_tokens == 5 + 7 + 7
    assert encoded.note() == (
        "1 of 3 examples are longer than 6 tokens and are cut (task.max_length); of 2 of 3 examples the target is cut "
        "(task.max_target_length)"
    )


def test_a_target_ends_where_its_tokenizer_leaves_that_out(bart: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bart.net.config, "eos_token_id", 4)
    bart.processor.eos_token = "[MASK]"
    try:
        encoded = Seq2Seq(max_target_length=6).encode(bart, ROWS)
    finally:
        bart.processor.eos_token = None
    assert text(bart, encoded.examples[0]["labels"]) == "[CLS] near a wave [SEP] [MASK]"
    assert text(bart, encoded.examples[1]["labels"]) == "[CLS] is old and near [MASK]"


@torch.no_grad()
def test_the_loss_is_the_models_own_and_of_each_example(bart: BaseModel) -> None:
    """Also where the model adds a bias to its logits, and where its output layer is not taken apart."""
    examples = TASK.encode(bart, ROWS).examples
    batch = TASK.collate(bart, examples)
    for bias in (0.0, 1.0):
        bart.net.final_logits_bias = bias * torch.linspace(-0.2, 0.2, bart.net.config.vocab_size)[None]
        bart.output.chunked = None
        outputs = TASK.outputs(bart, batch)
        assert bart.output.chunked
        assert_close(outputs.loss_sums.sum() / outputs.weights.sum(), bart.net(**batch).loss, atol=1e-5, rtol=1e-5)
        assert_close(TASK.score(TASK.logits(bart, batch), batch).loss_sums, outputs.loss_sums, atol=1e-5, rtol=1e-5)
        for row, example in enumerate(examples):
            alone = bart.net(**TASK.collate(bart, [example])).loss
            assert_close(outputs.loss_sums[row] / outputs.weights[row], alone, atol=1e-5, rtol=1e-5)
    bart.net.final_logits_bias = torch.zeros(1, bart.net.config.vocab_size)
    assert TASK.metrics(2.0, (), ()) == {"loss": 2.0, "perplexity": pytest.approx(math.e**2)}


def test_answers_are_those_of_generate_in_batches_too(bart: BaseModel) -> None:
    """Greedily, whatever the model's folder says of beams and forced ends; padding of a source changes nothing."""
    task = Seq2Seq(answers=2, answer_tokens=5)
    asked = [example["input_ids"] for example in TASK.encode(bart, ROWS).examples]
    with torch.no_grad():
        expected = [
            bart.net.generate(torch.tensor([ids]), max_new_tokens=5, forced_eos_token_id=None)[0, 1:].tolist()
            for ids in asked
        ]
    bart.net.generation_config.num_beams = 3
    assert answers(bart, asked, 5, at_once=1) == answers(bart, asked, 5, at_once=3) == expected
    bart.net.generation_config.num_beams = 1
    assert len({tuple(each) for each in expected}) > 1
    said = task.answered(bart, ROWS)
    assert [each.answer for each in said] == [
        bart.processor.decode(ids, skip_special_tokens=True) for ids in expected[:2]
    ]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(each.reference, each.answer)["rougeL"].fmeasure for each in said]
    assert task.answer_metrics(said) == {"rouge_l": pytest.approx(sum(scores) / 2)}


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]}, "conversations"),
        ({"text": ["a"]}, "plain texts"),
    ],
)
def test_conversations_and_plain_texts_are_refused(columns: dict[str, Any], what: str, bart: BaseModel) -> None:
    with pytest.raises(InputError, match=rf"it learns responses to prompts, and the data are {what}: set data\.prompt"):
        TASK.encode(bart, Dataset.from_dict(columns))


def test_settings_are_checked() -> None:
    for settings in ({"max_target_length": 1}, {"answers_every": 2}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match=r"max_target_length|answers_every|top_p"):
            Seq2Seq(**settings)  # type: ignore[arg-type]
