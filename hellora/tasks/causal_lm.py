"""Tune a causal language model to follow instructions: the loss is on the response, never on the prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.exchange import Outputs
from hellora.data.forms import prompts_of, references_of
from hellora.data.packing import PackedRows, packed
from hellora.data.settings import Columns
from hellora.model.answers import answers
from hellora.model.chat import settle_template, turn_ends
from hellora.model.learned import IGNORED, asked_tokens, learned_tokens
from hellora.model.load import adapter_spec, load_network, load_tokenizer
from hellora.model.normalise import blank_end, embedding_rows
from hellora.model.output_layer import chunk_rows, classes_of, layer_of
from hellora.model.packed_attention import allow_packing, check_packing
from hellora.model.resident import BaseModel
from hellora.model.sampling import GREEDY, Generation
from hellora.model.settings import Kind, ModelSettings
from hellora.model.whole import saved_modules
from hellora.tasks import Answered, Batch, Encoded, Example, Task, length_limit

LANGUAGE = """\
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig{quantizer}

{places}
{asked}

{quantization}tokenizer = AutoTokenizer.from_pretrained({source}{sides}{trust})
{padding}model = AutoModelForCausalLM.from_pretrained({source}, {arguments})
model.generation_config = GenerationConfig(eos_token_id={ends})  # no beams, no penalties
{wrapped}{encoding}with torch.no_grad():
    logits = model(**batch).logits
    tokens = model.generate(
        **batch, max_new_tokens={new_tokens}, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
answer = tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)"""


@dataclass(frozen=True)
class CausalLM(Task):
    """Answers prompts; `answers` of them are answered greedily as a run goes, and scored by ROUGE-L."""

    max_length: int = 512  # tokens of an example, all its turns together
    chat_template: str = ""  # a file with one, or its text; "" = the tokenizer's own
    loss_on: Literal["answers", "all"] = "answers"  # of plain texts every token is learned
    packing: bool = False  # a row of a step is several examples, up to max_length; none attends to another
    answers: int = 0  # prompts, of the validation data where there are any, else of the test data
    answers_every: int = 0  # rounds between answers; 0 = answers with each evaluation
    answer_tokens: int = 64  # of an answer, at most
    temperature: float = 0.0  # of `hellora predict`; 0 = the likeliest token, which runs always take
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    stop: tuple[str, ...] = ()  # texts before which an answer of `hellora predict` ends
    sampling_seed: int = 0  # of answers that are drawn
    columns: ClassVar[Columns] = "instruction"
    pipeline: ClassVar[str] = "text-generation"

    def __post_init__(self) -> None:
        if self.max_length < 4 or self.answers < 0 or self.answer_tokens < 1:
            raise ValueError("max_length must be at least 4 tokens, answer_tokens 1, and answers not negative")
        if self.chat_template and "{" not in self.chat_template:
            object.__setattr__(self, "chat_template", template_in(self.chat_template))  # a run's file has all it needs
        if self.answers_every < 0 or (self.answers_every and not self.answers):
            raise ValueError("answers_every must be 0 or a number of rounds, after which some answers are asked for")
        _ = self.generation  # which checks its part

    @property
    def generation(self) -> Generation:
        return Generation(self.temperature, self.top_p, self.stop, self.sampling_seed)

    @property
    def max_tokens(self) -> int:
        return self.max_length

    @property
    def usage(self) -> str:
        return LANGUAGE

    def kind(self) -> Kind:
        return "causal_lm"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        net, _ = load_network(settings, self.kind(), (), seed, weights)
        processor = load_tokenizer(settings, embedding_rows(net)) if weights else None
        spec, saved = adapter_spec(net, settings, language_model=True), saved_modules(net, settings)
        base = BaseModel(net, spec, processor, dropout=settings.dropout, saved=saved)
        if processor is not None:
            settle_template(processor, self.chat_template)
        if self.packing:
            allow_packing(base, settings.name)
            if processor is not None:
                limit = length_limit(base, self.max_length)
                check_packing(
                    base, settings.name, limit, lambda texts, packed: self.logits_of_texts(base, texts, packed)
                )
        if processor is not None and processor.eos_token_id is None and not turn_ends(processor):
            base.notices = ("the model's tokenizer has no end of text: answers are not taught to end",)
        return base

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        """Encode conversations, pairs of prompt and response, or texts; see `model/learned.py`."""
        found = learned_tokens(base, rows, length_limit(base, self.max_length), self.loss_on == "all")
        examples = [{"input_ids": each.input_ids, "labels": each.labels} for each in found]
        lengths = np.array([len(each.input_ids) for each in found])
        supervised = np.array([each.supervised for each in found])
        refused = tuple(each.refused for each in found if each.refused)
        lost = sum(each.cut and not each.supervised for each in found)
        return Encoded(examples, lengths, supervised, cut=sum(each.cut for each in found), lost=lost, refused=refused)

    def training_rows(self, base: BaseModel, encoded: Encoded, seed: int) -> Encoded:
        if not self.packing:
            return encoded
        assert encoded.lengths is not None  # as `encode` gives them
        members = packed(encoded.lengths, length_limit(base, self.max_length), seed)
        lengths = np.array([encoded.lengths[texts].sum() for texts in members])
        return Encoded(PackedRows(encoded.examples, members), lengths, members=members)

    def row_tokens(self, base: BaseModel, lengths: npt.NDArray[np.int64]) -> int:
        longest = super().row_tokens(base, lengths)
        return min(length_limit(base, self.max_length), int(lengths.sum())) if self.packing else longest

    def logits_of_texts(self, base: BaseModel, texts: Sequence[list[int]], packed: bool) -> Tensor:
        """Return the logits that predict every token but the first of each text, (rows, classes)."""
        examples = [{"input_ids": text, "labels": text} for text in texts]
        rows = [PackedRows(examples, [np.arange(len(texts))])[0]] if packed else examples
        return self.logits(base, self.collate(base, rows))

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        if "lengths" in examples[0]:
            return self.collate_packed(base, examples)
        width = max(len(example["input_ids"]) for example in examples)

        def padded(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": padded(ids, base.processor.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([example["labels"] for example in examples], IGNORED),
        }

    def collate_packed(self, base: BaseModel, rows: Sequence[Example]) -> Batch:
        """Collate packed rows: positions begin anew with each text, whose first token is no target."""
        width, count = max(len(row["input_ids"]) for row in rows), max(len(row["lengths"]) for row in rows)
        shape = (len(rows), width)
        batch = {
            "input_ids": torch.full(shape, base.processor.pad_token_id if base.processor else 0),
            "labels": torch.full(shape, IGNORED),
            "position_ids": torch.zeros(shape, dtype=torch.long),
            "texts": torch.zeros(len(rows), count, 2, dtype=torch.long),  # where each begins and ends; 0, 0 is none
        }
        for place, row in enumerate(rows):
            batch["input_ids"][place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            batch["labels"][place, : len(row["labels"])] = torch.tensor(row["labels"])
            ends = np.cumsum(row["lengths"])
            for text, (end, length) in enumerate(zip(ends.tolist(), row["lengths"], strict=True)):
                batch["labels"][place, end - length] = IGNORED
                batch["position_ids"][place, end - length : end] = torch.arange(length)
                batch["texts"][place, text] = torch.tensor([end - length, end])
        return batch

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        blank = torch.zeros(examples, tokens, dtype=torch.long, device=base.device)
        blank[:, -1] = blank_end(base.net.config)
        if self.packing:
            places = torch.arange(tokens, device=base.device).expand(examples, -1)
            texts = torch.tensor([[0, tokens]], device=base.device).expand(examples, -1, -1)
            return {"input_ids": blank, "labels": torch.zeros_like(blank), "position_ids": places, "texts": texts}
        mask = torch.ones_like(blank)
        mask[0, -1] = 0  # some padding, so that the model needs its mask
        return {"input_ids": blank, "attention_mask": mask, "labels": torch.zeros_like(blank)}

    def even_from(self, base: BaseModel, tokens: int) -> int:
        layer = layer_of(base.net)
        return 1 if layer is None else math.ceil(chunk_rows(classes_of(layer)) / max(tokens - 1, 1))

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        logits: Tensor = base.net(**inputs_of(batch)).logits
        return logits[:, :-1][batch["labels"][:, 1:] != IGNORED]

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        targets = batch["labels"][:, 1:]
        supervised = targets[targets != IGNORED]
        found = by_example(cross_entropy(logits.float(), supervised, reduction="none"), targets)
        return replace(found, logits=logits, labels=supervised)

    def outputs(self, base: BaseModel, batch: Batch) -> Outputs:
        """Run one forward pass, and score it, without logits: those of a whole batch would take more memory than all
        the rest."""
        targets = batch["labels"][:, 1:]
        supervised = targets != IGNORED
        losses = base.output.token_losses(base.net, inputs_of(batch), supervised, targets[supervised])
        return by_example(losses, targets)

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def asks(self, round: int, rounds: int, evaluated: bool) -> bool:
        if not self.answers_every:
            return evaluated
        return round % self.answers_every == 0 or round == rounds

    def answered(self, base: BaseModel, rows: Any) -> list[Answered]:
        return answered(self, base, rows, self.answers)

    def answer_metrics(self, answers: Sequence[Answered]) -> dict[str, float]:
        if not answers:
            return {}
        from rouge_score.rouge_scorer import RougeScorer  # it takes a sixth of a second, and few runs need it

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        scores = [scorer.score(each.reference, each.answer)["rougeL"].fmeasure for each in answers]
        return {"rouge_l": sum(scores) / len(scores)}

    def new_tokens(self, base: BaseModel) -> int:
        """Count the tokens that an answer may have: at most half of the limit."""
        return min(self.answer_tokens, length_limit(base, self.max_length) // 2)

    def answer(self, base: BaseModel, rows: Any, how: Generation = GREEDY) -> list[str]:
        """Choose a token at each place, up to the end of text or of the turn. As in training, a prompt that is too long
        loses its beginning."""
        room = length_limit(base, self.max_length) - self.new_tokens(base)
        asked = asked_tokens(base, rows, room) if len(rows) else []
        said = answers(base, asked, self.new_tokens(base), how=how) if asked else []
        return [how.cut(base.processor.decode(tokens, skip_special_tokens=True)) for tokens in said]


def answered(task: Task, base: BaseModel, rows: Any, count: int) -> list[Answered]:
    """Let a task answer the prompts of the first `count` rows."""
    rows = rows.select(range(min(count, len(rows))))
    if not len(rows):
        return []
    said = zip(prompts_of(rows), references_of(rows), task.answer(base, rows), strict=True)
    return [Answered(row, *each) for row, each in enumerate(said)]


def template_in(file: str) -> str:
    """Read a chat template. Raise ValueError where there is none."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"chat_template: there is no file {file}: correct it")
    return path.read_text(encoding="utf-8")


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return what the network is given of a batch; of packed rows, see `packed_attention`."""
    if "texts" in batch:
        named = {name: batch[name] for name in ("input_ids", "position_ids")}
        return {**named, "attention_mask": batch["texts"][:, None], "use_cache": False}
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}


def by_example(losses: Tensor, targets: Tensor) -> Outputs:
    """Sum the losses of supervised tokens, (rows,), by example; targets (batch, tokens - 1)."""
    supervised = targets != IGNORED
    of_example = losses.new_zeros(targets.shape).masked_scatter(supervised, losses)
    return Outputs(of_example.sum(1), supervised.sum(1).to(losses.dtype))
