"""Prefer one answer to another: direct preference optimisation (DPO; Rafailov et al., arXiv 2305.18290).

    loss = −(1 − ε) log σ(m) − ε log σ(−m)        m = β [log π(y⁺|x)/π₀(y⁺|x) − log π(y⁻|x)/π₀(y⁻|x)]

π is the adapted network, and the reference π₀ is the network as it was at the start: without any adapter, the same for
all clients and rounds. It costs no second model: before a client's adapter is put on, the bare network says what it
makes of the examples that the client will see. Each pair is asked about by itself, for what a network says of a row
depends, in its last bits, on those beside it; so a run that is resumed asks anew and hears the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hellora.core.errors import InputError
from hellora.core.exchange import Outputs
from hellora.data.settings import Columns
from hellora.model.learned import IGNORED, Learned, preferred_tokens
from hellora.model.resident import BaseModel
from hellora.model.sampling import GREEDY, Generation
from hellora.model.settings import Kind, ModelSettings
from hellora.tasks import Answered, Batch, Encoded, Example, Task, length_limit
from hellora.tasks.causal_lm import CausalLM, inputs_of

SIDES = ("chosen", "rejected")
UNKNOWN = math.nan  # of a reference that nobody asked for yet


@dataclass(frozen=True)
class Preference(Task):
    """Learns which of two answers people prefer."""

    max_length: int = 512  # tokens of a prompt and an answer together
    chat_template: str = ""  # a file with one, or its text; "" = the tokenizer's own
    beta: float = 0.1  # β: how much a step away from the reference costs
    label_smoothing: float = 0.0  # ε: the part of pairs that may be the wrong way round
    answers: int = 0  # these as of `causal_lm`
    answers_every: int = 0  # rounds between answers; 0 = answers with each evaluation
    answer_tokens: int = 64  # of an answer, at most
    temperature: float = 0.0  # of `hellora predict`; 0 = the likeliest token, which runs always take
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    stop: tuple[str, ...] = ()  # texts before which an answer of `hellora predict` ends
    sampling_seed: int = 0  # of answers that are drawn
    columns: ClassVar[Columns] = "preference"
    pipeline: ClassVar[str] = "text-generation"

    def __post_init__(self) -> None:
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise ValueError("beta must be greater than 0, and label_smoothing in [0, 0.5)")
        object.__setattr__(self, "chat_template", self.language.chat_template)  # its text, where it is a file

    @property
    def language(self) -> CausalLM:
        """Return the task that loads such models and lets them answer."""
        own = {field.name for field in fields(CausalLM)} & {field.name for field in fields(self)}
        return CausalLM(**{name: getattr(self, name) for name in own})

    @property
    def max_tokens(self) -> int:
        return self.max_length

    @property
    def usage(self) -> str:
        return self.language.usage

    def kind(self) -> Kind:
        return "causal_lm"

    def load(self, settings: ModelSettings, labels: Sequence[str], seed: int, weights: bool = True) -> BaseModel:
        return self.language.load(settings, labels, seed, weights)

    def encode(self, base: BaseModel, rows: Any) -> Encoded:
        found = preferred_tokens(base, rows, length_limit(base, self.max_length))
        examples = [self.example(*pair) for pair in found]
        lengths = np.array([max(len(one.input_ids), len(other.input_ids)) for one, other in found])
        refused = tuple(one.refused or other.refused for one, other in found if one.refused or other.refused)
        cut, lost = sum(one.cut or other.cut for one, other in found), sum(not each["counts"][0] for each in examples)
        return Encoded(examples, lengths, cut=cut, lost=lost - len(refused), refused=refused)

    def example(self, chosen: Learned, rejected: Learned) -> Example:
        """Make an example; its `reference` is one list for good, in which `before` writes what it heard. It does not
        count where a cut left nothing of an answer, or made both the same."""
        counts = bool(chosen.supervised and rejected.supervised) and chosen.input_ids != rejected.input_ids
        both = {"chosen": chosen, "rejected": rejected}
        ids = {f"{side}_ids": learned.input_ids for side, learned in both.items()}
        labels = {f"{side}_labels": learned.labels for side, learned in both.items()}
        return {**ids, **labels, "reference": [UNKNOWN] * 2, "counts": [int(counts)]}

    @torch.no_grad()
    def before(self, base: BaseModel, encoded: Encoded, rows: Iterable[int]) -> None:
        """Ask the bare network about the pairs that it was not asked about yet."""
        for row in dict.fromkeys(rows):
            example = encoded.examples[row]
            if math.isnan(example["reference"][0]):
                batch = {name: tensor.to(base.device) for name, tensor in self.collate(base, [example]).items()}
                example["reference"][:] = log_probabilities(base, batch).tolist()

    def collate(self, base: BaseModel, examples: Sequence[Example]) -> Batch:
        """Make one batch of (2 · examples, tokens): all chosen answers, then all rejected ones."""
        rows = [
            {"input_ids": example[f"{side}_ids"], "labels": example[f"{side}_labels"]}
            for side in SIDES
            for example in examples
        ]
        references = torch.tensor([example["reference"] for example in examples])
        counts = torch.tensor([float(example["counts"][0]) for example in examples])
        return {**self.language.collate(base, rows), "reference": references.T.flatten(), "counts": counts}

    def blank_batch(self, base: BaseModel, examples: int, tokens: int) -> Batch:
        batch = self.language.blank_batch(base, 2 * examples, tokens)
        counts = torch.ones(examples, device=base.device)
        return {**batch, "reference": torch.zeros(2 * examples, device=base.device), "counts": counts}

    def even_from(self, base: BaseModel, tokens: int) -> int:
        return math.ceil(self.language.even_from(base, tokens) / 2)

    def logits(self, base: BaseModel, batch: Batch) -> Tensor:
        raise InputError("task.name = 'preference': what distils on logits does not go with it: choose another method")

    def score(self, logits: Tensor, batch: Batch) -> Outputs:
        raise InputError("task.name = 'preference': what distils on logits does not go with it: choose another method")

    def outputs(self, base: BaseModel, batch: Batch) -> Outputs:
        """Run one forward pass over both answers of each example, and compare them."""
        chosen, rejected = (self.beta * (log_probabilities(base, batch) - batch["reference"])).chunk(2)
        margins = chosen - rejected
        losses = -(1 - self.label_smoothing) * logsigmoid(margins) - self.label_smoothing * logsigmoid(-margins)
        numbers = {
            "accuracy": (margins > 0).to(margins.dtype),
            "margin": margins,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
        counts = batch["counts"].to(losses.dtype)
        return Outputs(losses * counts, counts, numbers={name: n.detach() for name, n in numbers.items()})

    def new_tokens(self, base: BaseModel) -> int:
        """Count the tokens that an answer may have."""
        return self.language.new_tokens(base)

    @property
    def generation(self) -> Generation:
        return self.language.generation

    def answer(self, base: BaseModel, rows: Any, how: Generation = GREEDY) -> list[str]:
        return self.language.answer(base, rows, how)

    def asks(self, round: int, rounds: int, evaluated: bool) -> bool:
        return self.language.asks(round, rounds, evaluated)

    def answered(self, base: BaseModel, rows: Any) -> list[Answered]:
        """Answer prompts; what is to be said is the chosen answer."""
        name = "response" if "prompt" in rows.column_names else "messages"
        return self.language.answered(base, rows.rename_column("chosen", name))

    def answer_metrics(self, answers: Sequence[Answered]) -> dict[str, float]:
        return self.language.answer_metrics(answers)


def log_probabilities(base: BaseModel, batch: Batch) -> Tensor:
    """Return log π(answer | prompt) of each row of a batch, (rows,), in nats, summed over the answer's tokens."""
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORED
    losses = base.output.token_losses(base.net, inputs_of(batch), supervised, targets[supervised])
    return -losses.new_zeros(targets.shape).masked_scatter(supervised, losses).sum(1)
