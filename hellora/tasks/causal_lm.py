"""Tune a causal language model to follow instructions: the loss is on the response, never on the prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.model.answers import answers
from hellora.model.load import adapter_spec, load_network, load_tokenizer
from hellora.model.normalise import blank_end, embedding_rows
from hellora.model.resident import BaseModel
from hellora.model.sampling import GREEDY, Generation
from hellora.model.settings import Kind, ModelSettings
from hellora.model.texts import encoded_texts, named
from hellora.tasks import Answered, Batch, Columns, Encoded, Example, Task, length_limit

IGNORED = -100  # label of a token that is not supervised


@dataclass(frozen=True)
class CausalLM(Task):
    """Answers prompts; `answers` of them are answered greedily as a run goes, and scored by ROUGE-L."""

    max_length: int = 512  # tokens of prompt and response together
    answers: int = 0  # prompts, of the validation data where there are any, else of the test data
    answers_every: int = 0  # rounds between answers; 0 = answers with each evaluation
    answer_tokens: int = 64
    temperature: float = 0.0  # of `hellora predict`; 0 = the likeliest token, which runs always take
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    stop: tuple[str, ...] = ()  # texts before which an answer of `hellora predict` ends
    sampling_seed: int = 0
    columns: ClassVar[Columns] = "instruction"

    def __post_init__(self) -> None:
        if self.max_length < 4 or self.answers < 0 or self.answer_tokens < 1:
            raise ValueError("max_length must be at least 4 tokens, answer_tokens 1, and answers not negative")
        if self.answers_every < 0 or (self.answers_every and not self.answers):
            raise ValueError("answers_every must be 0 or a number of rounds, after which some answers are asked for")

        _ = self.generation  # which checks its part

    @property
    def generation(self) -> Generation:
        return Generation(self.temperature, self.top_p, self.stop, self.sampling_seed)

    @property
    def max_tokens(self) -> int:
        return self.max_length

    def kind(self) -> Kind:
        return "causal_lm"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        net, _ = load_network(settings, self.kind(), (), seed, weights)
        processor = load_tokenizer(settings, embedding_rows(net)) if weights else None
        base = BaseModel(net, adapter_spec(net, settings, language_model=True), processor, dropout=settings.dropout)
        if processor is not None and processor.eos_token_id is None:
            base.notices = ("the model's tokenizer has no end of text: answers are not taught to end",)
        return base

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        """Join prompt, response and end of text. Where both are too long together, the response keeps up to half of the
        limit and the prompt loses its beginning."""
        limit = length_limit(base, self.max_length)
        tokenizer = base.processor
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        prompts = without_end(tokenizer, encoded_texts(base, rows, ("prompt",))["input_ids"])
        responses = encoded_texts(base, rows, ("response",), add_special_tokens=False)["input_ids"]
        examples, supervised = [], []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            answer = (response + end)[: max(limit // 2, limit - len(prompt))]
            question = shortened(tokenizer, prompt, limit - len(answer))
            examples.append({"input_ids": question + answer, "labels": [IGNORED] * len(question) + answer})
            predicted = len(answer) if question else len(answer) - 1  # nothing predicts a first token
            if predicted < 1:
                raise InputError(
                    f"data.response: {named(rows, row, 'response')} has no token to learn from: leave the row out"
                )
            supervised.append(predicted)
        lengths = np.array([len(example["input_ids"]) for example in examples])
        return Encoded(examples, lengths, np.array(supervised))

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        width = max(len(example["input_ids"]) for example in examples)

        def padded(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": padded(ids, base.processor.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([example["labels"] for example in examples], IGNORED),
        }

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        blank = torch.zeros(examples, tokens, dtype=torch.long, device=base.device)
        blank[:, -1] = blank_end(base.net.config)
        mask = torch.ones_like(blank)
        mask[0, -1] = 0  # some padding, so that the model needs its mask
        return {"input_ids": blank, "attention_mask": mask, "labels": torch.zeros_like(blank)}

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        logits: Tensor = base.net(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        return logits[:, :-1][batch["labels"][:, 1:] != IGNORED]

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        targets = batch["labels"][:, 1:]  # (batch, tokens - 1)
        supervised = targets != IGNORED
        losses = cross_entropy(logits.float(), targets[supervised], reduction="none")
        of_example = losses.new_zeros(targets.shape).masked_scatter(supervised, losses)
        return Outputs(of_example.sum(1), supervised.sum(1).to(losses.dtype), logits=logits, labels=targets[supervised])

    def metrics(self, loss: float, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def asks(self, round: int, rounds: int, evaluated: bool) -> bool:
        if not self.answers_every:
            return evaluated
        return round % self.answers_every == 0 or round == rounds

    def answered(self, base: BaseModel, rows: Any) -> list[Answered]:
        rows = rows.select(range(min(self.answers, len(rows))))
        if not len(rows):
            return []
        prompts, references = rows["prompt"][:], rows["response"][:]
        said = zip(prompts, references, self.answer(base, prompts), strict=True)
        return [Answered(row, *each) for row, each in enumerate(said)]

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

    def answer(self, base: BaseModel, prompts: Sequence[str], how: Generation = GREEDY) -> list[str]:
        """Choose a token at each place, up to the end of text. As in training, a prompt that is too long
        loses its beginning."""
        room = length_limit(base, self.max_length) - self.new_tokens(base)
        asked = []
        tokens = encoded_texts(base, {"prompt": prompts}, ("prompt",))["input_ids"]
        for row, prompt in enumerate(without_end(base.processor, tokens)):
            if not prompt:
                raise InputError(
                    f"data.prompt: the model's tokenizer finds no token in row {row} ({prompts[row][:40]!r}): leave "
                    f"the row out"
                )
            asked.append(shortened(base.processor, prompt, room))
        said = answers(base, asked, self.new_tokens(base), how=how) if asked else []
        return [how.cut(base.processor.decode(tokens, skip_special_tokens=True)) for tokens in said]


def without_end(tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Drop the end of text that a tokenizer adds to each prompt, for the answer follows."""
    return [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in prompts]


def shortened(tokenizer: Any, prompt: list[int], count: int) -> list[int]:
    """Return the last `count` tokens of a prompt; its beginning-of-text token stays in front."""
    if len(prompt) <= count:
        return prompt
    first = prompt[:1] if prompt[0] == tokenizer.bos_token_id else []
    return first + prompt[len(prompt) - count + len(first) :]
