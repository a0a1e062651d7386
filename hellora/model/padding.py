"""Find the side on which texts can be padded such that what the model says of one does not depend on its neighbours."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hellora.core.errors import InputError
from hellora.model.resident import BaseModel

Examples = Sequence[dict[str, Any]]

WORDS = 12  # of the longer text of a trial
ROUNDED = 1e-3  # of the largest logit: more is no rounding of float32
HALF_ROUNDED = 0.1  # of formats with half as many bits; what lies between tells nothing about such a model


def settle_padding(base: BaseModel, name: str, limit: int, logits_of: Callable[[Examples], Tensor]) -> None:
    """Let the tokenizer pad on the right, or on the left where only that leaves a text's logits as they are: for a head
    that reads the last place, such as XLNet's.

    `logits_of` says what the model makes of a batch of tokenized examples, (examples, classes), each of up to `limit`
    tokens. Where padding acts on texts on either side, the base is for batches of one length.

    Raises:
        InputError: the model's decoder needs inputs of its own.
    """
    if any(not weight.is_floating_point() for weight in base.net.parameters()):
        return  # quantised: it rounds by what is in a batch
    found = {}
    for side in ("right", "left"):
        base.processor.padding_side = side
        try:
            found[side] = moved(base.processor, limit, logits_of)
        except Exception as error:  # whatever a model's code raises; the run's first evaluation says why
            base.processor.padding_side = "right"
            if base.head is not None and getattr(base.net.config, "is_encoder_decoder", False):
                raise InputError(
                    f"task.head_type: {name!r} ({base.net.config.model_type}) has a decoder that mean pooling gives "
                    f"nothing: set task.head_type = 'own'"
                ) from error
            return
        if not found[side] > (ROUNDED if base.dtype == torch.float32 else HALF_ROUNDED):
            return
    base.processor.padding_side = "right"
    base.one_length = base.dtype == torch.float32


def refuse_padding(base: BaseModel, lengths: Sequence[int]) -> None:
    """Raise InputError where texts of these lengths would have to be padded, and the model cannot tell."""
    if base.one_length and len(set(lengths)) > 1:
        raise InputError(
            f"model.name: a model of the kind {base.net.config.model_type} lets padding act on texts, so that what it "
            f"says of one would depend on those beside it: set train.batch_size = 1 and compute.eval_batch_size = 1, "
            f"or name another model"
        )


@torch.no_grad()
def moved(tokenizer: Any, limit: int, logits_of: Callable[[Examples], Tensor]) -> float:
    """Return how far a short text's logits move when a longer one stands beside it, as a part of the largest logit."""
    tokens = tokenizer(trial(tokenizer), truncation=True, max_length=limit, split_special_tokens=True)
    examples = [{name: values[row] for name, values in tokens.items()} | {"label": 0} for row in (0, 1)]
    alone, beside = logits_of(examples[:1])[0].float(), logits_of(examples)[0].float()
    return float((alone - beside).abs().max() / alone.abs().max().clamp(min=1e-6))


def trial(tokenizer: Any) -> list[str]:
    """Make a short and a longer text of words that the tokenizer knows."""
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special]
    words = [tokenizer.decode([token]) for token in ids[:: max(1, len(ids) // WORDS)][:WORDS]]
    return [" ".join(words[:2]), " ".join(words)]
