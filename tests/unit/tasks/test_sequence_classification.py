"""Texts: encoding, padding, the two heads, the loss."""

from pathlib import Path

import bases
import pytest
import tiny_models
import torch
import transformers
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from hellora.core.metrics import UNLABELLED
from hellora.model.resident import BaseModel
from hellora.tasks.sequence_classification import SequenceClassification

MEAN = SequenceClassification()
OWN = SequenceClassification(head_type="own")
ROWS = Dataset.from_dict({"text": ["the old boat", "we saw the new moon near a field", "rain"], "label": [0, 1, 2]})


@pytest.fixture(scope="module")
def own(tiny_bert_with_head: Path) -> BaseModel:
    return bases.load(tiny_bert_with_head, OWN)


@pytest.fixture(scope="module")
def mean(tiny_bert: Path) -> BaseModel:
    return bases.load(tiny_bert, MEAN)


def test_texts_are_cut_and_their_lengths_counted(mean: BaseModel) -> None:
    encoded = MEAN.encode(mean, ROWS)
    assert encoded.lengths is not None
    assert encoded.lengths.tolist() == [5, 10, 3]
    assert [example["label"] for example in encoded.examples] == [0, 1, 2]
    assert mean.processor.decode(encoded.examples[0]["input_ids"]) == "[CLS] the old boat [SEP]"
    cut = SequenceClassification(max_length=4).encode(mean, ROWS)
    assert cut.lengths is not None
    assert cut.lengths.tolist() == [4, 4, 3]
    assert mean.processor.decode(cut.examples[1]["input_ids"]) == "[CLS] we saw [SEP]"


def test_batches_are_padded_on_the_right(mean: BaseModel) -> None:
    batch = MEAN.collate(mean, MEAN.encode(mean, ROWS).examples)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 10),
        "token_type_ids": (3, 10),
        "attention_mask": (3, 10),
        "labels": (3,),
    }
    assert batch["attention_mask"].tolist() == [[1] * n + [0] * (10 - n) for n in (5, 10, 3)]
    assert not batch["input_ids"][batch["attention_mask"] == 0].any()  # [PAD] is 0
    assert batch["labels"].tolist() == [0, 1, 2]


def test_pairs_of_texts_are_one_input_of_two_segments(mean: BaseModel) -> None:
    pairs = Dataset.from_dict(
        {"text": ["the boat", "a star"], "text_pair": ["we saw rain", "the moon"], "label": [0, 1]}
    )
    examples = MEAN.encode(mean, pairs).examples
    assert mean.processor.decode(examples[0]["input_ids"]) == "[CLS] the boat [SEP] we saw rain [SEP]"
    assert examples[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert MEAN.collate(mean, examples)["token_type_ids"].shape == (2, 8)
    with mean.adapted(bases.acting_adapter(mean)):
        assert MEAN.outputs(mean, MEAN.collate(mean, examples)).loss_sums.shape == (2,)


def test_the_loss_of_an_own_head_is_hugging_faces(own: BaseModel) -> None:
    batch = OWN.collate(own, OWN.encode(own, ROWS).examples)
    with torch.no_grad():
        theirs = own.net(**batch)
        outputs = OWN.outputs(own, batch)
    assert_close(outputs.loss_sums.sum() / outputs.weights.sum(), theirs.loss, atol=1e-6, rtol=1e-6)
    assert outputs.weights.tolist() == [1, 1, 1]
    assert outputs.predictions is not None
    assert outputs.predictions.tolist() == theirs.logits.argmax(-1).tolist()


def test_mean_pooling_by_hand(mean: BaseModel) -> None:
    """The mean over a text's own tokens, whatever it is padded with; a linear head in float32."""
    examples = MEAN.encode(mean, ROWS).examples
    assert mean.head is not None
    with torch.no_grad():
        outputs = MEAN.outputs(mean, MEAN.collate(mean, examples))
        for i, example in enumerate(examples):
            hidden = mean.net(input_ids=torch.tensor([example["input_ids"]])).last_hidden_state[0]
            logits = mean.head.weight @ hidden.mean(0) + mean.head.bias
            expected = cross_entropy(logits[None], torch.tensor([example["label"]]))
            assert_close(outputs.loss_sums[i], expected, atol=1e-5, rtol=1e-5)
            assert outputs.predictions is not None
            assert outputs.predictions[i] == logits.argmax()


def test_the_linear_head_is_drawn_from_the_seed(tiny_bert: Path) -> None:
    settings = bases.ModelSettings(name=str(tiny_bert))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    heads = [MEAN.load(settings, bases.LABELS, seed).initial_head() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert heads[0]["weight"].shape == (3, 32)
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])
    assert not torch.equal(heads[0]["weight"], heads[2]["weight"])
    wider = bases.ModelSettings(name=str(tiny_bert), classes=5)
    assert MEAN.load(wider, bases.LABELS, 0).initial_head()["bias"].shape == (5,)


def test_a_decoder_classifies_by_its_last_real_token(tiny_llama: Path, tmp_path: Path) -> None:
    """Such a model must know which token is padding, or it reads the padding's."""
    config = transformers.LlamaConfig.from_pretrained(str(tiny_llama), pad_token_id=None)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(str(tmp_path))
    tiny_models.save_tokenizer(tmp_path)
    base = bases.load(tmp_path, OWN)
    assert base.head_modules == ("score",)
    examples = OWN.encode(base, ROWS).examples
    with torch.no_grad():
        together = OWN.outputs(base, OWN.collate(base, examples)).loss_sums
        alone = torch.cat([OWN.outputs(base, OWN.collate(base, [example])).loss_sums for example in examples])
    assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_an_unlabelled_example_has_no_loss(mean: BaseModel) -> None:
    rows = Dataset.from_dict({"text": ["we saw the boat", "the moon"], "label": [UNLABELLED, 1]})
    batch = MEAN.collate(mean, MEAN.encode(mean, rows).examples)
    outputs = MEAN.outputs(mean, batch)
    assert outputs.loss_sums[0] == 0
    assert outputs.loss_sums[1] > 0
