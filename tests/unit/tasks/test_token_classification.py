"""Words and their tokens: which token stands for a word, what is lost, metrics and spans by hand."""

from pathlib import Path

import bases
import pytest
import torch
from datasets import Dataset
from seqeval.metrics import classification_report, f1_score
from sklearn.metrics import f1_score as macro_f1
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from hellora.client.evaluation import evaluate
from hellora.client.inference import predict
from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.core.per_class import ClassCounts, PerClass
from hellora.core.types import Adapter
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.model.words import check_tells_words, word_prefix
from hellora.results.prediction import as_text
from hellora.tasks.token_classification import TokenClassification

TASK = TokenClassification()
LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> BaseModel:
    return TASK.load(ModelSettings(name=str(tiny_bert), rank=3), LABELS, seed=0)


def rows(*sentences: tuple[list[str], list[int]]) -> Dataset:
    return Dataset.from_dict({"tokens": [words for words, _ in sentences], "tags": [tags for _, tags in sentences]})


def test_the_first_token_of_a_word_has_its_tag(base: BaseModel) -> None:
    """`boat-wave` is three tokens, `[SEP]` three others, and of a zero-width space the tokenizer leaves nothing."""
    encoded = TASK.encode(base, rows((["saw", "boat-wave", "\u200b", "[SEP]", "a"], [4, 1, 3, 0, 2])))
    (example,) = encoded.examples
    assert example["places"] == [-1, 0, 1, -1, -1, 3, -1, -1, 4, -1]
    assert example["labels"] == [-100, 4, 1, -100, -100, 0, -100, -100, 2, -100]
    assert encoded.tokens is not None
    assert encoded.tokens.tolist() == [4]
    assert encoded.note() == "words without a token of the model's, neither learned nor tagged: 1"


def test_texts_of_which_no_word_has_a_token_are_refused_and_measured_as_nothing(base: BaseModel) -> None:
    """Some of them beside others are measured as if they were not there."""
    nothing, some = (["\u200b"], [1]), (["a", "boat"], [4, 0])
    with pytest.raises(InputError, match=r"data\.tokens: the model has a token for no word of any test example"):
        TASK.encode(base, rows(nothing)).note("test ")
    own = Adapter({}, base.initial_head())
    alone, beside, without = (
        evaluate(own, base, TASK, rows(*each), 8).metrics for each in ([nothing], [nothing, some], [some])
    )
    assert alone["loss"] == alone["token_accuracy"] == 0.0
    assert beside == pytest.approx(without)


def test_words_behind_the_limit_are_counted(base: BaseModel) -> None:
    task = TokenClassification(max_length=5)
    encoded = task.encode(base, rows((["the"] * 4, [4] * 4), (["a"] * 3, [0] * 3)))
    assert [example["labels"] for example in encoded.examples] == [[-100, 4, 4, 4, -100], [-100, 0, 0, 0, -100]]
    assert encoded.note() == "1 of 2 examples are longer than 5 tokens and are cut (task.max_length)"


def test_a_loss_is_of_each_example_and_nothing_of_a_word_without_a_tag(base: BaseModel) -> None:
    """Batches and padding change nothing; a word that is UNLABELLED counts, with a loss of 0."""
    given = rows((["a", "boat-wave"], [4, 1]), (["the", "old", "moon", "saw"], [0, 4, UNLABELLED, 2]))
    encoded = TASK.encode(base, given)
    with torch.no_grad():
        together = TASK.outputs(base, TASK.collate(base, encoded.examples))
        for row, example in enumerate(encoded.examples):
            batch = TASK.collate(base, [example])
            alone = TASK.outputs(base, batch)
            torch.testing.assert_close(together.loss_sums[row], alone.loss_sums[0], atol=1e-5, rtol=1e-5)
            inputs = {name: value for name, value in batch.items() if name != "places"}
            known = (batch["labels"] != UNLABELLED).sum()
            torch.testing.assert_close(alone.loss_sums[0], base.net(**inputs).loss * known, atol=1e-5, rtol=1e-5)
    assert together.weights.tolist() == [2, 4]
    assert together.logits is not None
    assert together.logits.shape == (6, 5)


def test_metrics_of_entities_by_hand() -> None:
    """Of 3 entities 1 is found whole, among 2 that are said: precision 1/2, recall 1/3, F = 2/5. 5 of 8 words."""
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "O", "O"]]
    said = [["B-PER", "I-PER", "O", "O"], ["O", "O", "O", "B-LOC"]]
    assert TASK.metrics(0.5, said, right) == {
        "entity_f1": pytest.approx(2 / 5),
        "entity_precision": pytest.approx(1 / 2),
        "entity_recall": pytest.approx(1 / 3),
        "token_accuracy": pytest.approx(5 / 8),
        "loss": 0.5,
    }
    assert TASK.metrics(0.5, said, right)["entity_f1"] == pytest.approx(f1_score(right, said))
    nothing = [["O", "O"]]
    assert TASK.metrics(0.5, nothing, nothing)["entity_f1"] == 0
    assert TASK.per_class(said, right) == PerClass({"LOC": ClassCounts(2, 1, 0), "PER": ClassCounts(1, 1, 1)})
    assert TASK.per_class(nothing, nothing) == PerClass()
    assert TASK.per_class([["B", "I"]], [["B", "O"]]) == PerClass({"entity": ClassCounts(1, 1, 0)})
    assert (TASK.kinds(LABELS), TASK.kinds(("B", "I", "O"))) == (["LOC", "PER"], ["entity"])


def test_entities_of_each_kind_are_those_of_seqeval() -> None:
    generator = torch.Generator().manual_seed(0)
    tags = [[LABELS[i] for i in torch.randint(0, 5, (12,), generator=generator)] for _ in range(60)]
    right, said = tags[:30], tags[30:]
    theirs = classification_report(right, said, output_dict=True, zero_division=0)
    found = TASK.per_class(said, right).scores(())
    assert list(found) == ["LOC", "PER"]
    for kind, scores in found.items():
        assert list(scores.values()) == pytest.approx(list(theirs[kind].values()), abs=1e-4)


def test_metrics_of_plain_tags() -> None:
    right, said = [["DET", "NOUN"], ["VERB", "NOUN"]], [["DET", "NOUN"], ["NOUN", "NOUN"]]
    flat = [[tag for tags in each for tag in tags] for each in (right, said)]
    expected = {"token_accuracy": 3 / 4, "macro_f1": macro_f1(*flat, average="macro", zero_division=0), "loss": 1.0}
    assert TASK.metrics(1.0, said, right) == pytest.approx(expected)
    found = TASK.per_class(said, right)
    assert found.counts == {"DET": ClassCounts(1, 1, 1), "NOUN": ClassCounts(2, 3, 2), "VERB": ClassCounts(1, 0, 0)}
    assert found.confusion(())["confusion"]["counts"] == [[1, 0, 0], [0, 2, 0], [0, 1, 0]]
    assert TASK.kinds(("DET", "NOUN", "VERB")) == ("DET", "NOUN", "VERB")


def test_an_evaluation_is_of_the_tags_by_their_names(base: BaseModel) -> None:
    adapter, given = bases.acting_adapter(base), rows((["a", "boat-wave"], [4, 1]), (["moon", "the", "old"], [0, 2, 4]))
    told = predict(adapter, base, TASK, given.remove_columns("tags"), 1, LABELS)
    right = [[LABELS[tag] for tag in tags] for tags in given["tags"][:]]
    found = evaluate(adapter, base, TASK, given, batch_size=2).metrics
    assert found == pytest.approx(TASK.metrics(found["loss"], [each["tags"] for each in told], right))


def test_a_prediction_has_spans() -> None:
    """Of word 2 nothing is known; I-LOC behind it begins a place, as it does behind a person."""
    examples = [
        {"places": [-1, 0, 1, -1, 3, 4, -1], "words": ["Peter", "Pan", "\u200b", "New", "York"]},
        {"places": [-1, 0, 1], "words": ["Anna", "is"]},
    ]
    said = torch.tensor([1, 3, 2, 2, 1, 4])
    found = TASK.predictions(torch.nn.functional.one_hot(said, 5).float(), examples, LABELS)
    assert found[0] == {
        "entities": [
            {"label": "PER", "start": 0, "end": 2, "text": "Peter Pan"},
            {"label": "LOC", "start": 3, "end": 5, "text": "New York"},
        ],
        "tags": ["B-PER", "I-PER", None, "I-LOC", "I-LOC"],
    }
    assert TASK.predictions(torch.eye(2), examples[1:], ("DET", "NOUN")) == [{"tags": ["DET", "NOUN"]}]
    assert as_text(found[1:], ".csv") == (
        'entities,tags\n"[{""label"": ""PER"", ""start"": 0, ""end"": 1, ""text"": ""Anna""}]","[""B-PER"", ""O""]"\n'
    )


def byte_level(spaces: bool) -> PreTrainedTokenizerFast:
    """A tokenizer like RoBERTa's, which tells words by the space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {letter: i for i, letter in enumerate(["<pad>", "a", "b", "Ġ", "Ġa", "Ġb"])}
    made = Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("Ġ", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaces)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


def test_words_have_the_tokens_of_running_text(base: BaseModel) -> None:
    assert [word_prefix(byte_level(spaces)) for spaces in (False, True)] == [" ", ""]
    assert word_prefix(base.processor) == ""


def test_a_tokenizer_that_does_not_tell_words_is_refused() -> None:
    with pytest.raises(InputError, match=r"the tokenizer of 'byt5' does not tell which word a token is of"):
        check_tells_words(ByT5Tokenizer(), "byt5")
