"""Draw the next token instead of always taking the likeliest one, by a seed: alike for a prompt whatever is beside it.

    argmax(logits / temperature + g),  g = −log e,  e ~ Exp(1)

draws from softmax(logits / temperature) (Gumbel). Of top-p sampling (Holtzman et al., arXiv 1904.09751), the likeliest
tokens are kept whose probabilities together reach p; all others are left out before that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hellora.core.seeds import seed_for


@dataclass(frozen=True)
class Generation:
    """Says how tokens are chosen, and where an answer ends besides at the end of text."""

    temperature: float = 0.0  # 0 = always the likeliest token
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # texts before which an answer ends
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature must be 0 or more, not {self.temperature}, and top_p above 0 and at most 1, not "
                f"{self.top_p}"
            )
        if self.top_p < 1 and not self.temperature:
            raise ValueError("top_p means nothing where temperature is 0, the likeliest token: set temperature, too")
        if "" in self.stop:
            raise ValueError("stop has an empty text, which every answer begins with: leave it out")

    def more(self, tokenizer: Any, rows: Sequence[int], width: int) -> dict[str, Any]:
        """Return further arguments of `generate` for a batch of these rows, whose prompts are `width` tokens wide."""
        found: dict[str, Any] = {}
        if self.temperature:
            found["logits_processor"] = [Drawing(self, rows)]
        if self.stop:
            found["stopping_criteria"] = [Stopping(tokenizer, self.stop, width)]
        return found

    def cut(self, text: str) -> str:
        """Return an answer without what stands from the first stop on."""
        places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text


GREEDY = Generation()


class Drawing:
    """Changes logits (batch, tokens) so that the largest one is a draw; each row has a generator of its own."""

    def __init__(self, how: Generation, rows: Sequence[int]) -> None:
        self.how = how
        self.generators = [torch.Generator().manual_seed(seed_for(how.seed, "answer", row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = within_top_p(scores.float() / self.how.temperature, self.how.top_p)
        drawn = [torch.empty(logits.shape[1]).exponential_(generator=each) for each in self.generators]
        return logits - torch.stack(drawn).log().to(logits.device)


def within_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set to −∞ all logits (batch, tokens) but those of the likeliest tokens that together reach `top_p`."""
    if top_p == 1:
        return logits
    ordered, places = logits.softmax(-1).sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # what the likelier ones have together
    left_out = torch.zeros_like(logits, dtype=torch.bool).scatter(1, places, before >= top_p)
    return logits.masked_fill(left_out, -math.inf)


class Stopping:
    """Says which answers of a batch have come to a text that ends them."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, stop, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
        done = [any(stop in text for stop in self.stop) for text in said]
        return torch.tensor(done, device=input_ids.device)
