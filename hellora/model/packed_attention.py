"""Let no text of a packed row attend to another: attention runs over each text by itself.

Where texts lie travels to each attention layer in the place of its mask, which no model changes: (rows, 1, texts, 2)
whole numbers, the begin and end of each text, (0, 0) for none. A block that is run again in backward gets it again. See
docs/decisions/0020-attention-over-packed-rows.md.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad, scaled_dot_product_attention

from hellora.core.errors import InputError, one_line
from hellora.model.attention import attention_of, name_of_attention, register_attention, set_attention
from hellora.model.normalise import text_config
from hellora.model.padding import HALF_ROUNDED
from hellora.model.resident import BaseModel

Place = tuple[int, int, int]  # row, begin, end
LENGTHS = (5, 9)  # of the texts of a trial
MOVED = 1e-4  # of the largest logit: more is no rounding of float32
PREFIX, KNOWN = "hellora_packed_", ("sdpa", "eager", "flash_attention_2")  # of names of attention
aten = torch.ops.aten


class PackedAttention:
    """Packed attention computes a network's own attention over each text; given a mask, it is that attention."""

    def __init__(self, own: str) -> None:
        self.own = own  # as transformers names it
        self.known: tuple[ReferenceType[Tensor], list[Place]] | None = None  # of the last batch
        self.windows: set[int | None] = set()  # that layers have named

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        own = attention_of(self.own, module)
        if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype == torch.bool:
            found: tuple[Tensor, None] = own(module, query, key, value, attention_mask, **named)
            return found
        if self.own.startswith("flash"):
            return by_flash(own, module, query, key, value, self.places(attention_mask), named)
        self.windows.add(named.get("sliding_window"))
        without_values = isinstance(attention_mask, FakeTensor)
        if self.is_fused(query, value, named) and (without_values or query.device.type == "cpu"):
            key, value, scale = *(for_each_head(part, query.shape[1]) for part in (key, value)), named.get("scaling")
            if without_values:  # one text in each row
                whole = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
                return whole.transpose(1, 2), None
            return by_text(query, key, value, self.places(attention_mask), scale), None
        return each_alone(
            own, module, (query, key, value), self.places(attention_mask), named, self.own == "sdpa"
        ), None

    def is_fused(self, query: Tensor, value: Tensor, named: dict[str, Any]) -> bool:
        """Tell whether one fused kernel computes it: no window, no dropout, nothing that is added to scores."""
        window = named.get("sliding_window")
        others = named.get("dropout") or named.get("position_bias") is not None
        fits = window is None or query.shape[2] <= window
        return self.own == "sdpa" and fits and not others and query.shape[-1] == value.shape[-1]

    def places(self, mask: Tensor) -> list[Place]:
        """Read where texts lie, once for all layers."""
        if isinstance(mask, FakeTensor):
            return [(row, 0, -1) for row in range(len(mask))]
        if self.known is None or self.known[0]() is not mask:
            texts = [(row, *ends) for row, each in enumerate(mask[:, 0].tolist()) for ends in each if ends[1]]
            self.known = ref(mask), texts
        return self.known[1]


ATTENTION = {PREFIX + known: PackedAttention(known) for known in KNOWN}
for known in KNOWN:  # in worker processes, too, which get their model as it is here
    register_attention(PREFIX + known, known, ATTENTION[PREFIX + known])


def for_each_head(tensor: Tensor, heads: int) -> Tensor:
    """Repeat what heads share, (batch, groups, tokens, d), for each of them."""
    times = heads // tensor.shape[1]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=1)


def by_text(query: Tensor, key: Tensor, value: Tensor, places: Sequence[Place], scale: float | None) -> Tensor:
    """Run the CPU's fused kernel over each text; return (rows, tokens, heads, d)."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    found: Tensor = FusedByText.apply(query, key, value, places, scale)  # type: ignore[no-untyped-call]
    return found.transpose(1, 2)


class FusedByText(torch.autograd.Function):
    """FusedByText computes causal attention of each text, and writes it where the text lies: what is kept for backward
    is what the kernel keeps of a whole row. Nothing is computed where there is no text."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, places: Sequence[Place], scale: float | None
    ) -> Tensor:
        rows, heads, tokens, size = query.shape
        out = query.new_zeros(rows, tokens, heads, size).transpose(1, 2)
        sums = query.new_zeros(rows, tokens, heads, dtype=torch.float32).transpose(1, 2)
        for row, begin, end in places:
            parts = (tensor[row : row + 1, :, begin:end] for tensor in (query, key, value))
            found, sum_of = aten._scaled_dot_product_flash_attention_for_cpu(*parts, is_causal=True, scale=scale)
            out[row : row + 1, :, begin:end], sums[row : row + 1, :, begin:end] = found, sum_of
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.places, ctx.scale = places, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        kept = ctx.saved_tensors
        found = tuple(torch.zeros_like(tensor) for tensor in kept[:3])
        for row, begin, end in ctx.places:
            parts = (tensor[row : row + 1, :, begin:end] for tensor in (gradient, *kept))
            of_parts = aten._scaled_dot_product_flash_attention_for_cpu_backward(*parts, 0.0, True, scale=ctx.scale)
            for whole, part in zip(found, of_parts, strict=True):
                whole[row : row + 1, :, begin:end] = part
        return found[0], found[1], found[2], None, None


def each_alone(
    own: Callable[..., Any],
    module: Any,
    inputs: tuple[Tensor, Tensor, Tensor],
    places: Sequence[Place],
    named: dict[str, Any],
    is_sdpa: bool,
) -> Tensor:
    """Run the network's own attention over each text; return (rows, tokens, heads, d)."""
    rows, _, tokens, _ = inputs[0].shape
    found: list[list[Tensor]] = [[] for _ in range(rows)]
    filled = [0] * rows
    for row, begin, end in with_ends(places, tokens):
        query, key, value = (tensor[row : row + 1, :, begin:end] for tensor in inputs)
        window = named.get("sliding_window")
        plain = is_sdpa and (window is None or end - begin <= window)
        mask = None if plain else causal_mask(end - begin, window, query)
        found[row].append(own(module, query, key, value, mask, **named)[0])
        filled[row] = end
    return torch.cat(
        [pad(torch.cat(parts, 1), (0, 0, 0, 0, 0, tokens - end)) for parts, end in zip(found, filled, strict=True)]
    )


def with_ends(places: Sequence[Place], tokens: int) -> Iterator[Place]:
    """Yield the places, with what ends at the end of its row as it does there."""
    return ((row, begin, tokens if end < 0 else end) for row, begin, end in places)


def causal_mask(tokens: int, window: int | None, like: Tensor) -> Tensor:
    """Return what is added to scores, (1, 1, tokens, tokens): a token sees those before it, of a window the last."""
    place = torch.arange(tokens, device=like.device)
    before = place[:, None] - place
    seen = (before >= 0) & (before < (tokens if window is None else window))
    return torch.where(seen, 0.0, torch.finfo(like.dtype).min).to(like.dtype)[None, None]


def by_flash(
    own: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Sequence[Place],
    named: dict[str, Any],
) -> tuple[Tensor, None]:
    """Run flash attention for texts of unequal lengths, over all of the rows; what lies behind the last text of a row
    is a text of its own."""
    tokens = query.shape[2]
    starts = {row * tokens + begin for row, begin, _ in places} | {row * tokens + end for row, _, end in places}
    ends = sorted(starts | {row * tokens for row in range(len(query) + 1)})
    sums = torch.tensor(ends, dtype=torch.int32, device=query.device)
    longest = int(np.diff(ends).max())
    of_texts = {"cu_seq_lens_q": sums, "cu_seq_lens_k": sums, "max_length_q": longest, "max_length_k": longest}
    found: tuple[Tensor, None] = own(module, query, key, value, None, **named | of_texts)
    return found


# --------------------------------------------------------------------------------------------------------------- trial


def allow_packing(base: BaseModel, name: str) -> None:
    """Let the base compute attention over packed rows.

    Raises:
        InputError: its attention cannot be told where texts lie.
    """
    own = name_of_attention(base.net)
    try:
        if own not in ATTENTION:
            set_attention(base.net, PREFIX + own)
    except Exception as error:  # whatever transformers raises
        raise InputError(refusal(name, base, one_line(error))) from error


def check_packing(base: BaseModel, name: str, limit: int, logits_of: Callable[[list[list[int]], bool], Tensor]) -> None:
    """Raise InputError unless the model says of two texts in one row what it says of each alone, and would of texts of
    up to `limit` tokens.

    `logits_of` says what it makes of texts, given by their tokens, side by side or (True) packed into one row: the
    logits of every token but the first of each, (rows, classes).
    """
    windows = ATTENTION[name_of_attention(base.net)].windows
    windows.clear()
    try:
        table, first = base.net.get_input_embeddings(), LENGTHS[0]
        ids = np.linspace(0, table.num_embeddings - 1, sum(LENGTHS)).astype(int).tolist()
        texts = [ids[:first], ids[first:]]
        with torch.no_grad():
            alone = torch.cat([logits_of([text], False) for text in texts]).float()
            together = logits_of(texts, True).float()
            with made_nan(table, slice(0, first)):
                second = logits_of(texts, True)[first - 1 :]
            with made_nan(table, slice(first, None)):
                touched = torch.cat([logits_of(texts, True)[: first - 1], second]).isnan().any()
            moved = float((alone - together).abs().max() / alone.abs().max().clamp(min=1e-6))
    except Exception as error:  # whatever a model's code raises
        raise InputError(refusal(name, base, one_line(error))) from error
    if (window := smallest_window(base.net.config)) is not None and window < limit and window not in windows:
        raise InputError(refusal(name, base, f"only its masks tell its window of {window} tokens"))
    if touched:  # however little it is: in half precision no other trial would tell
        raise InputError(refusal(name, base, "one reaches into the other"))
    exact = base.dtype == torch.float32 and all(weight.is_floating_point() for weight in base.net.parameters())
    if not moved <= (MOVED if exact else HALF_ROUNDED):
        raise InputError(refusal(name, base, f"a text beside another moves its logits by {moved:.1%}"))


def smallest_window(config: Any) -> int | None:
    """Return how many tokens back the layers of a model see that see the fewest, as its config says; None: all."""
    config = text_config(config)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    said = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
    return min((window for window in said if window), default=None)


@contextmanager
def made_nan(table: nn.Module, places: slice) -> Iterator[None]:
    """Make the vectors of tokens at these places of the first row nan: whatever they reach is nan, too."""

    def hook(_table: nn.Module, _inputs: Any, vectors: Tensor) -> Tensor:
        vectors = vectors.clone()
        vectors[0, places] = torch.nan
        return vectors

    handle = table.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def refusal(name: str, base: BaseModel, why: str) -> str:
    return (
        f"task.packing: {name!r} ({base.net.config.model_type}) cannot keep the texts of a row apart ({why[:200]}): "
        f"set task.packing = false, or name another model"
    )
