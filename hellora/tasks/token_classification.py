"""Tag the words of a text: names of people and places in it, or parts of speech."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.exchange import Outputs
from hellora.core.metrics import UNLABELLED
from hellora.core.per_class import ClassCounts, PerClass
from hellora.data.settings import Columns
from hellora.data.tag_schemes import OUTSIDE, are_of_entities, parted, spans
from hellora.model.load import adapter_spec, load_network, load_tokenizer
from hellora.model.normalise import blank_end, embedding_rows
from hellora.model.padding import refuse_padding, settle_padding
from hellora.model.resident import BaseModel
from hellora.model.settings import Kind, ModelSettings
from hellora.model.whole import saved_modules
from hellora.model.words import NO_WORD, check_tells_words, encoded_words
from hellora.tasks import Batch, Encoded, Example, Prediction, Task, length_limit

NAMELESS = "entity"  # the kind of entities that are all of one, which has no name
WORDS = """\
import json
{imports}from transformers import AutoModelForTokenClassification, AutoTokenizer{quantizer}

{places}
{texts}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{sides}{trust})
{padding}model = AutoModelForTokenClassification.from_pretrained(
    {source}, {arguments}
)
{wrapped}{splitting}batch = tokenizer(
    words, is_split_into_words=True, padding=True, truncation=True, max_length={max_length}, split_special_tokens=True,
    return_tensors="pt",
)
with torch.no_grad():
    logits = model(**batch).logits
with open({folder} + "/labels.json") as file:
    labels = json.load(file)
answers = []
for text, of_text in enumerate(logits):  # a word has the tag of its first token
    ids = batch.word_ids(text)
    first = {{word: place for place, word in reversed([*enumerate(ids)]) if word is not None}}
    answers.append({{word: labels[int(of_text[place].argmax())] for word, place in sorted(first.items())}})"""


@dataclass(frozen=True)
class TokenClassification(Task):
    """Tags words, by the model's own head; the first token of a word stands for it."""

    max_length: int = 128  # tokens; longer texts are cut
    columns: ClassVar[Columns] = "tokens"
    pipeline: ClassVar[str] = "token-classification"

    def __post_init__(self) -> None:
        if self.max_length < 4:
            raise ValueError(f"max_length must be at least 4 tokens, not {self.max_length}")

    @property
    def max_tokens(self) -> int:
        return self.max_length

    @property
    def usage(self) -> str:
        return WORDS

    def kind(self) -> Kind:
        return "token_classification"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        notices: list[str] = []
        net, head_modules = load_network(settings, self.kind(), labels, seed, weights, notices)
        processor = load_tokenizer(settings, embedding_rows(net)) if weights else None
        spec, saved = adapter_spec(net, settings), saved_modules(net, settings)
        base = BaseModel(net, spec, processor, dropout=settings.dropout, head_modules=head_modules, saved=saved)
        base.notices = tuple(notices)
        if weights:
            check_tells_words(processor, settings.name)
            limit = length_limit(base, self.max_length)
            settle_padding(base, settings.name, limit, lambda given: self.logits_of_first(base, given))
        return base

    def logits_of_first(self, base: BaseModel, texts: Sequence[Example]) -> Tensor:
        """Return the logits of the first token of each text, (texts, classes)."""
        examples = []
        for inputs in texts:
            count = len(inputs["input_ids"])
            places = [0] + [NO_WORD] * (count - 1)
            inputs = {name: values for name, values in inputs.items() if name != "label"}
            examples.append({**inputs, "places": places, "labels": [0] * count})
        return self.logits(base, self.collate(base, examples))

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        """Encode words with their tags; of rows without tags, such as those to predict, the words are kept."""
        found = encoded_words(base, rows, length_limit(base, self.max_length))
        tagged = "tags" in rows.column_names
        texts = rows["tags" if tagged else "tokens"][:]
        examples = []
        for each, text in zip(found, texts, strict=True):
            tags = text if tagged else [UNLABELLED] * len(text)
            labels = [UNLABELLED if place == NO_WORD else tags[place] for place in each.places]
            words = {} if tagged else {"words": text}
            examples.append({**each.inputs, "places": each.places, "labels": labels, **words})
        lengths = np.array([len(each.places) for each in found])
        seen = np.array([sum(place != NO_WORD for place in each.places) for each in found])
        lost = sum(each.cut and not count for each, count in zip(found, seen.tolist(), strict=True))
        cut, missed = sum(each.cut for each in found), sum(each.missed for each in found)
        return Encoded(examples, lengths, seen, cut=cut, lost=lost, missed=missed)

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        ours = ("places", "labels", "words")
        inputs = [{name: values for name, values in example.items() if name not in ours} for example in examples]
        refuse_padding(base, [len(one["input_ids"]) for one in inputs])
        batch: Batch = dict(base.processor.pad(inputs, return_tensors="pt"))
        width, on_the_left = batch["input_ids"].shape[1], base.processor.padding_side == "left"

        def padded(name: str, filler: int) -> Tensor:
            rows = [(example[name], [filler] * (width - len(example[name]))) for example in examples]
            return torch.tensor([more + row if on_the_left else row + more for row, more in rows])

        return {**batch, "places": padded("places", NO_WORD), "labels": padded("labels", UNLABELLED)}

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        blank = torch.zeros(examples, tokens, dtype=torch.long, device=base.device)
        places = torch.arange(tokens, device=base.device).expand(examples, -1)
        batch = {"input_ids": blank.clone(), "attention_mask": torch.ones_like(blank)}
        batch["input_ids"][:, -1] = blank_end(base.net.config)
        batch["attention_mask"][0, -1] = 0  # some padding, so that the model needs its mask
        return {**batch, "places": places, "labels": blank}

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        """Run one forward pass: (words, classes), of the words of all examples, one after the other."""
        inputs = {name: value for name, value in batch.items() if name not in ("places", "labels")}
        logits: Tensor = base.net(**inputs).logits
        return logits[batch["places"] != NO_WORD]

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        """Say what logits (words, classes) mean for each example; a word that is UNLABELLED has a loss of 0."""
        words = batch["places"] != NO_WORD
        labels = batch["labels"][words]
        losses = cross_entropy(logits.float(), labels, reduction="none", ignore_index=UNLABELLED)
        of_example = losses.new_zeros(words.shape).masked_scatter(words, losses)
        said = torch.full_like(batch["labels"], UNLABELLED)
        said = said.masked_scatter(words, logits.argmax(-1)).where(batch["labels"] != UNLABELLED, UNLABELLED)
        return Outputs(of_example.sum(1), words.sum(1).to(losses.dtype), said, logits, labels)

    def by_name(self, base: BaseModel, said: Sequence[Any]) -> Sequence[Any]:
        """Name the tags of each example's labelled words; a class to spare is outside of entities."""
        names = base.net.config.id2label
        spare = OUTSIDE if are_of_entities([*names.values()]) else ""
        known = {place: name if not spare or parted(name) else spare for place, name in names.items()}
        return [[known[place] for place in of_example if place != UNLABELLED] for of_example in said]

    def metrics(self, loss: float, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Return the part of the words that is tagged right, and of entities precision, recall and F1 (seqeval); of
        plain tags macro F1 over those that occur."""
        from sklearn.metrics import f1_score  # these imports take as long as a plan

        said, right = ([tag for of_example in each for tag in of_example] for each in (predictions, references))
        equal = sum(one == other for one, other in zip(said, right, strict=True))
        found = {"token_accuracy": equal / max(1, len(right)), "loss": loss}
        if not are_of_entities({*said, *right}):
            return {**found, "macro_f1": float(f1_score(right, said, average="macro", zero_division=0.0))}
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        scores = precision_recall_fscore_support(references, predictions, average="micro", zero_division=0)
        precision, recall, f1 = map(float, scores[:3])
        return {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall, **found}

    def per_class(self, predictions: Sequence[Any], references: Sequence[Any]) -> PerClass:
        """Count how entities of each kind are found, by its name, as seqeval finds them; of plain tags, each tag."""
        said, right = ([tag for of_example in each for tag in of_example] for each in (predictions, references))
        if not are_of_entities({*said, *right}):
            return PerClass.of(right, said)
        from seqeval.metrics.sequence_labeling import get_entities

        found, there = ({*get_entities(list(each))} for each in (predictions, references))
        counts = [Counter(kind for kind, _, _ in each) for each in (there, found, there & found)]
        kinds = sorted(counts[0] | counts[1])
        named = {kind: NAMELESS if kind == "_" else kind for kind in kinds}  # as seqeval calls a type without a name
        return PerClass({named[kind]: ClassCounts(*(each[kind] for each in counts)) for kind in kinds})

    def kinds(self, labels: Sequence[str]) -> Sequence[str]:
        """Return the kinds of entities that tags are of, or plain tags."""
        found = (parted(label) for label in labels)
        return sorted({part[1] or NAMELESS for part in found if part}) if are_of_entities(labels) else labels

    def predictions(self, logits: Tensor, examples: Sequence[Example], names: Sequence[str]) -> list[Prediction]:
        """Give each word its tag, None where it has no token or was cut; of entities also their labels, words (`start`
        up to, and without, `end`) and texts."""
        places = [[place for place in example["places"] if place != NO_WORD] for example in examples]
        found = []
        for example, seen, own in zip(examples, places, torch.split(logits, [*map(len, places)]), strict=True):
            words = example["words"]
            told = dict(zip(seen, own.argmax(-1).tolist(), strict=True))
            tags = [names[told[place]] if place in told else None for place in range(len(words))]
            prediction: Prediction = {"tags": tags}
            if are_of_entities(names):
                prediction = {"entities": entities(words, [tag or OUTSIDE for tag in tags]), **prediction}
            found.append(prediction)
        return found


def entities(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities of a text for a person."""
    return [
        {"label": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
        for kind, start, end in spans(tags)
    ]
