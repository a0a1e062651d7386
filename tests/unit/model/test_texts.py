"""Texts that leave no token, that cannot be encoded, and that contain special tokens."""

from pathlib import Path
from typing import Any

import bases
import pytest
import tiny_models
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from hellora.core.errors import InputError
from hellora.model.resident import BaseModel
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.sequence_classification import SequenceClassification

MEAN, LANGUAGE = SequenceClassification(), CausalLM()


def bare(folder: Path, model: Any) -> Path:
    """A tokenizer that adds nothing to a text."""
    built = Tokenizer(model)
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=built).save_pretrained(str(folder))
    return folder


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """No padding, no end, no unknown: letters that it does not know are dropped."""
    tiny_models.save_bert(tmp_path)
    return bare(tmp_path, models.BPE(vocab={c: i for i, c in enumerate("abcdefgh")}, merges=[]))


def test_a_tokenizer_without_any_special_token_works(letters: Path) -> None:
    base = bases.load(letters)
    batch = MEAN.collate(base, MEAN.encode(base, bases.rows_of(["abc", "a"])).examples)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    with torch.no_grad():
        assert MEAN.logits(base, batch).isfinite().all()


def test_a_text_that_leaves_no_token_is_named(letters: Path) -> None:
    base = bases.load(letters)
    rows = bases.rows_of(["abc", "\u200b", "bad", "xyz"]).select([0, 2, 3])
    with pytest.raises(InputError, match=r"^data\.text: .* finds no token in row 3 \('xyz'\): leave the row out$"):
        MEAN.encode(base, rows)


def test_mean_pooling_of_no_token_is_no_nan(tiny_bert: Path) -> None:
    base = bases.load(tiny_bert)
    batch = MEAN.collate(base, MEAN.encode(base, bases.rows_of(["rain", "the boat"])).examples)
    batch["attention_mask"][0] = 0
    with torch.no_grad():
        assert MEAN.logits(base, batch).isfinite().all()


def test_a_text_that_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    tiny_models.save_bert(tmp_path)
    base = bases.load(bare(tmp_path, models.WordLevel({"the": 0, "boat": 1}, unk_token="[UNK]")))
    with pytest.raises(InputError, match=r"^data\.text: .* cannot encode row 1 \('the moon'\) \(WordLevel.*\): mend"):
        MEAN.encode(base, bases.rows_of(["the boat", "the moon"]))


def language(folder: Path) -> BaseModel:
    tiny_models.save_llama(folder)
    return bases.load(bare(folder, models.BPE(vocab={c: i for i, c in enumerate("abcdefgh")}, merges=[])), LANGUAGE)


def test_a_response_without_a_token_is_named(tmp_path: Path) -> None:
    base = language(tmp_path)
    assert base.notices == ("the model's tokenizer has no end of text: answers are not taught to end",)
    rows = bases.instructions(["ab", "abc"], ["a", "xyz"])
    with pytest.raises(InputError, match=r"^data\.response: row 1 \('xyz'\) has no token to learn from: leave the row"):
        LANGUAGE.encode(base, rows)
    with pytest.raises(InputError, match=r"^data\.response: row 0 \('a'\) has no token to learn from"):
        LANGUAGE.encode(base, bases.instructions(["xyz"], ["a"]))  # nothing predicts a first token


def test_a_prompt_without_a_token_is_named(tmp_path: Path) -> None:
    base = language(tmp_path)
    with pytest.raises(InputError, match=r"^data\.prompt: .* no token in row 1 \('xyz'\): leave the row out$"):
        LANGUAGE.answer(base, bases.prompts("abc", "xyz"))


def test_special_tokens_in_texts_pairs_prompts_and_responses_are_text(tiny_bert: Path, tiny_llama: Path) -> None:
    base = bases.load(tiny_bert)
    pairs = Dataset.from_dict({"text": ["the [SEP] boat"], "text_pair": ["[CLS] rain [PAD]"], "label": [0]})
    (example,) = MEAN.encode(base, pairs).examples
    special = [base.processor.convert_ids_to_tokens(i) for i in example["input_ids"] if i in (0, 2, 3)]
    assert special == ["[CLS]", "[SEP]", "[SEP]"], "those of the pair itself"
    llama = bases.load(tiny_llama, LANGUAGE)
    (example,) = LANGUAGE.encode(llama, bases.instructions(["the [SEP] boat"], ["[MASK] rain"])).examples
    special = [llama.processor.convert_ids_to_tokens(i) for i in example["input_ids"] if i in (0, 2, 3, 4)]
    assert special == ["[CLS]", "[SEP]"]
