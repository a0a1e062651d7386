"""Tune an encoder-decoder, such as T5 or BART, to say a target for a source: a summary, a translation, an answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.data.settings import Columns
from hellora.model.answers import answers
from hellora.model.learned import IGNORED
from hellora.model.load import adapter_spec, load_network, load_tokenizer
from hellora.model.normalise import blank_end, embedding_rows, end_ids, text_config
from hellora.model.output_layer import chunk_rows, classes_of, layer_of
from hellora.model.resident import BaseModel
from hellora.model.sampling import GREEDY, Generation
from hellora.model.settings import Kind, ModelSettings
from hellora.model.texts import named, within
from hellora.model.whole import saved_modules
from hellora.tasks import Answered, Batch, Encoded, Example, Task, length_limit
from hellora.tasks.causal_lm import CausalLM, answered, by_example

SOURCE = """\
{imports}from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig{quantizer}

{places}
{asked}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{sides}{trust})
{padding}model = AutoModelForSeq2SeqLM.from_pretrained({source}, {arguments})
model.generation_config = GenerationConfig(eos_token_id={ends}{begins})  # no beams, no penalties
{wrapped}{splitting}batch = tokenizer(
    prompt, truncation=True, max_length={max_length}, split_special_tokens=True, return_tensors="pt",
    return_token_type_ids=False,
)
with torch.no_grad():
    tokens = model.generate(
        **batch, max_new_tokens={new_tokens}, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    logits = model(**batch, decoder_input_ids=tokens).logits
answer = tokenizer.decode(tokens[0, 1:], skip_special_tokens=True)"""


@dataclass(frozen=True)
class Seq2Seq(Task):
    """Says a target for each source; `answers` of them are said greedily as a run goes, and scored by ROUGE-L."""

    max_length: int = 512  # tokens of a source
    max_target_length: int = 128  # tokens of a target
    answers: int = 0  # these as of `causal_lm`
    answers_every: int = 0  # rounds between answers; 0 = answers with each evaluation
    answer_tokens: int = 64  # of an answer, at most
    temperature: float = 0.0  # of `hellora predict`; 0 = the likeliest token, which runs always take
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    stop: tuple[str, ...] = ()  # texts before which an answer of `hellora predict` ends
    sampling_seed: int = 0  # of answers that are drawn
    columns: ClassVar[Columns] = "instruction"
    pipeline: ClassVar[str] = "text2text-generation"

    def __post_init__(self) -> None:
        if self.max_target_length < 2:
            raise ValueError(f"max_target_length must be at least 2 tokens, not {self.max_target_length}")
        _ = self.language  # which checks the rest

    @property
    def language(self) -> CausalLM:
        """Return the task that asks for answers at the same times, and scores them alike."""
        own = {field.name for field in fields(CausalLM)} & {field.name for field in fields(self)}
        return CausalLM(**{name: getattr(self, name) for name in own})

    @property
    def generation(self) -> Generation:
        return self.language.generation

    @property
    def max_tokens(self) -> int:
        return self.max_length

    @property
    def usage(self) -> str:
        return SOURCE

    def kind(self) -> Kind:
        return "seq2seq"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        net, _ = load_network(settings, self.kind(), (), seed, weights)
        processor = load_tokenizer(settings, embedding_rows(net)) if weights else None
        spec, saved = adapter_spec(net, settings), saved_modules(net, settings)
        return BaseModel(net, spec, processor, dropout=settings.dropout, saved=saved)

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        """Encode sources and targets, each with what its tokenizer puts around it; both are cut at their ends.

        Raises:
            InputError: rows are no pairs of texts, or nothing of a target can be learned; the row is named.
        """
        check_pairs(rows)
        limit, target_limit = self.limits(base)
        sources, long = within(base, rows, "prompt", limit)
        targets, long_targets = within(base, rows, "response", target_limit, target=True)
        empty = next((row for row, target in enumerate(targets) if not target), None)
        if empty is not None:
            raise InputError(
                f"data.response: {named(rows, empty, 'response')} has no token to learn from: leave the row out"
            )
        targets = [with_end(base, target, target_limit) for target in targets]
        examples = [{"input_ids": one, "labels": other} for one, other in zip(sources, targets, strict=True)]
        said = np.array([*map(len, targets)])
        lengths = np.maximum([*map(len, sources)], said)
        return Encoded(examples, lengths, said, cut=long, limit=limit, cut_targets=long_targets)

    def limits(self, base: BaseModel) -> tuple[int, int]:
        """Return how many tokens a source, and a target, may have."""
        return length_limit(base, self.max_length), length_limit(base, self.max_target_length)

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        def padded(rows: Sequence[list[int]], filler: int) -> Tensor:
            width = max(map(len, rows))
            return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

        sources = [example["input_ids"] for example in examples]
        return {
            "input_ids": padded(sources, base.processor.pad_token_id),
            "attention_mask": padded([[1] * len(source) for source in sources], 0),
            "labels": padded([example["labels"] for example in examples], IGNORED),
        }

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        """Make sources and targets as long as they can be where the longer ones have so many tokens."""
        limit, target_limit = self.limits(base)
        source = torch.zeros(examples, min(tokens, limit), dtype=torch.long, device=base.device)
        source[:, -1] = blank_end(base.net.config)
        mask = torch.ones_like(source)
        mask[0, -1] = 0  # some padding, so that the model needs its mask
        labels = torch.zeros(examples, min(tokens, target_limit), dtype=torch.long, device=base.device)
        return {"input_ids": source, "attention_mask": mask, "labels": labels}

    def even_from(self, base: BaseModel, tokens: int) -> int:
        layer = layer_of(base.net)
        targets = min(tokens, self.limits(base)[1])
        return 1 if layer is None else math.ceil(chunk_rows(classes_of(layer)) / max(targets, 1))

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        logits: Tensor = base.net(**inputs_of(base, batch)).logits
        return logits[batch["labels"] != IGNORED]

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        supervised = batch["labels"][batch["labels"] != IGNORED]
        found = by_example(cross_entropy(logits.float(), supervised, reduction="none"), batch["labels"])
        return replace(found, logits=logits, labels=supervised)

    def outputs(self, base: BaseModel, batch: Batch) -> Outputs:
        """Run one forward pass, and score it, without the logits of a whole batch."""
        supervised = batch["labels"] != IGNORED
        targets = batch["labels"][supervised]
        losses = base.output.token_losses(base.net, inputs_of(base, batch), supervised, targets)
        return by_example(losses, batch["labels"])

    def metrics(self, loss: float, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return self.language.metrics(loss, predictions, references)

    def asks(self, round: int, rounds: int, evaluated: bool) -> bool:
        return self.language.asks(round, rounds, evaluated)

    def answered(self, base: BaseModel, rows: Any) -> list[Answered]:
        return answered(self, base, rows, self.answers)

    def answer_metrics(self, answers: Sequence[Answered]) -> dict[str, float]:
        return self.language.answer_metrics(answers)

    def new_tokens(self, base: BaseModel) -> int:
        """Count the tokens that an answer may have."""
        return min(self.answer_tokens, self.limits(base)[1])

    def answer(self, base: BaseModel, rows: Any, how: Generation = GREEDY) -> list[str]:
        """Choose a token at each place, up to the end of text; a source that is too long is cut at its end."""
        if not len(rows):
            return []
        if "messages" in rows.column_names:
            check_pairs(rows)
        column = "prompt" if "prompt" in rows.column_names else "text"
        asked, _ = within(base, rows, column, self.limits(base)[0])
        said = answers(base, asked, self.new_tokens(base), how=how)
        return [how.cut(base.processor.decode(tokens, skip_special_tokens=True)) for tokens in said]


def with_end(base: BaseModel, target: list[int], limit: int) -> list[int]:
    """Return a target that ends, where its tokenizer has an end of text and does not write it."""
    own = base.processor.eos_token_id
    if own is None or not {*target}.isdisjoint(end_ids(base.processor, text_config(base.net.config))):
        return target
    return [*target[: limit - 1], own]


def check_pairs(rows: Any) -> None:
    """Raise InputError unless rows are prompts with responses."""
    if not {"prompt", "response"} <= {*rows.column_names}:
        found = "conversations" if "messages" in rows.column_names else "plain texts"
        raise InputError(
            f"task.name = 'seq2seq': it learns responses to prompts, and the data are {found}: set data.prompt and "
            f"data.response, without data.as_chat, or task.name = 'causal_lm'"
        )


def inputs_of(base: BaseModel, batch: Batch) -> dict[str, Any]:
    """Return what the network is given of a batch: to the decoder targets that are shifted as the model does it, or the
    targets for the model to shift."""
    shift = getattr(base.net, "prepare_decoder_input_ids_from_labels", None)
    said = {"labels": batch["labels"]} if shift is None else {"decoder_input_ids": shift(batch["labels"])}
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **said, "use_cache": False}
