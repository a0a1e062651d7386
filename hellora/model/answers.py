"""Let a language model answer prompts, several at once on a GPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hellora.model.load import greedy
from hellora.model.padding import HALF_ROUNDED, ROUNDED
from hellora.model.resident import BaseModel
from hellora.model.sampling import GREEDY, Generation

Tokens = list[int]
AT_ONCE = 32  # prompts on a GPU; a CPU takes one after the other, whose answers are then the same on any number of them


@torch.no_grad()
def answers(
    base: BaseModel,
    prompts: Sequence[Tokens],
    new_tokens: int,
    at_once: int | None = None,
    how: Generation = GREEDY,
) -> list[Tokens]:
    """Choose a token at each place after each prompt, as `how` says, up to the end of text or `new_tokens`.

    Prompts of a batch are padded on the left, or on the right where an encoder reads them, the shortest first; one by
    one where that moves what the model says.
    `at_once` is the size of a batch; None = AT_ONCE on a GPU and 1 on a CPU.
    """
    if at_once is None:
        at_once = AT_ONCE if base.device.type == "cuda" else 1
    encodes, order = reads_by_encoder(base), list(range(len(prompts)))
    found: dict[int, Tokens] = {}
    with greedy(base.net, base.processor):
        if at_once > 1:
            order.sort(key=lambda row: len(prompts[row]))
            if not padding_is_harmless(base, prompts[order[0]], prompts[order[-1]]):
                at_once = 1
        for start in range(0, len(order), at_once):
            rows = order[start : start + at_once]
            width = 1 if encodes else max(len(prompts[row]) for row in rows)  # of what stands before each answer
            more = how.more(base.processor, rows, width)
            out = generated(base, [prompts[row] for row in rows], max_new_tokens=new_tokens, **more)
            found |= {row: ended(base, tokens) for row, tokens in zip(rows, out[:, width:].tolist(), strict=True)}
    return [found[row] for row in range(len(prompts))]


def reads_by_encoder(base: BaseModel) -> bool:
    """Say whether an encoder reads the prompts, so that an answer begins with the decoder's first token."""
    return bool(getattr(base.net.config, "is_encoder_decoder", False))


def generated(base: BaseModel, prompts: Sequence[Tokens], **how: Any) -> Any:
    """Generate after prompts that are padded."""
    width, pad, encodes = max(map(len, prompts)), base.processor.pad_token_id, reads_by_encoder(base)

    def padded(row: Tokens, filler: int) -> Tokens:
        more = [filler] * (width - len(row))
        return row + more if encodes else more + row

    ids = torch.tensor([padded(prompt, pad) for prompt in prompts])
    mask = torch.tensor([padded([1] * len(prompt), 0) for prompt in prompts])
    return base.net.generate(
        input_ids=ids.to(base.device),
        attention_mask=mask.to(base.device),
        do_sample=False,
        pad_token_id=pad,
        **how,
    )


def ended(base: BaseModel, tokens: Tokens) -> Tokens:
    """Cut an answer behind its end of text, where those of a longer answer beside it are padding."""
    ends = base.net.generation_config.eos_token_id or []
    known = set(ends if isinstance(ends, list) else [ends])
    place = next((place for place, token in enumerate(tokens) if token in known), len(tokens))
    return tokens[: place + 1]


def padding_is_harmless(base: BaseModel, short: Tokens, long: Tokens) -> bool:
    """Say whether what the model says after a prompt stays as it is where padding stands beside it."""

    def said(*prompts: Tokens) -> Tensor:
        out = generated(base, prompts, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        logits: Tensor = out.logits[0][0].float()
        return logits

    if len(short) == len(long):
        return True
    alone, beside = said(short), said(short, long)
    moved = float((alone - beside).abs().max() / alone.abs().max().clamp(min=1e-6))
    return moved < (ROUNDED if base.dtype == torch.float32 else HALF_ROUNDED)
