"""Read pairs of answers of which people prefer one: `chosen` and `rejected`, as texts or as lists of turns.

    prompt    a text, or turns; where there is none, what both answers begin with
    chosen    the answer, or the whole conversation with it
    rejected  likewise

Conversations become `chosen` and `rejected` as whole lists of turns, in which the turns before the answers have the
weight 0; texts become `prompt`, `chosen` and `rejected`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Features, Value

from hellora.core.errors import InputError
from hellora.data.cells import Faults, cells_of, filled, texts
from hellora.data.forms import MESSAGES, Cells, holds_lists, system_column
from hellora.data.loading import Split
from hellora.data.settings import DataSettings
from hellora.data.turns import Fault, Turn, as_turns, turns_of, with_system

NAMES = ("prompt", "chosen", "rejected")
USUAL = (*NAMES, "system")


def read_preferences(split: Split, settings: DataSettings, faults: Faults, notes: list[str]) -> tuple[Cells, Features]:
    """Read a split into canonical columns; rows that cannot be used become faults, and the form is noted.

    Raises:
        InputError: a column is absent.
    """
    for setting in ("chosen", "rejected"):
        cells_of(split, getattr(settings, setting), setting)
    if holds_lists(split, settings.chosen):
        notes.append(f"{split.where} holds pairs of conversations ('{settings.chosen}', '{settings.rejected}')")
        return conversations(split, settings, faults, notes)
    notes.append(f"{split.where} holds pairs of answers ('{settings.chosen}', '{settings.rejected}')")
    found = answers(split, settings, faults)
    if not settings.as_chat:
        return found, Features(dict.fromkeys(NAMES, Value("string")))
    turns = [[as_turns(prompt, answer) for answer in pair] for prompt, *pair in zip(*found.values(), strict=True)]
    return as_cells(turns, split, settings)


def answers(split: Split, settings: DataSettings, faults: Faults) -> Cells:
    """Read prompts and answers that are texts; without a prompt, it is what both answers begin with, up to a space."""
    chosen, rejected = (
        texts(cells_of(split, getattr(settings, name), name), split, name, faults) for name in NAMES[1:]
    )
    if settings.prompt:
        prompts = filled(settings.prompt, split, "prompt")
    elif "prompt" in split.data.column_names:
        prompts = texts(cells_of(split, "prompt", "prompt"), split, "prompt", faults)
    else:
        prompts = [shared_text(*pair) for pair in zip(chosen, rejected, strict=True)]
        chosen = [text[len(prompt) :] for text, prompt in zip(chosen, prompts, strict=True)]
        rejected = [text[len(prompt) :] for text, prompt in zip(rejected, prompts, strict=True)]
    for row, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if one == other:
            faults.setdefault(row, "its chosen and its rejected answer are the same")
        elif not (one.strip() and other.strip()):
            faults.setdefault(row, "one of its answers is empty")
    return dict(zip(NAMES, (prompts, chosen, rejected), strict=True))


def shared_text(one: str, other: str) -> str:
    """Return what two texts begin with, up to its last space: an answer begins with a whole word."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[: one.rfind(" ", 0, same + 1) + 1] if same < max(len(one), len(other)) else one


def conversations(split: Split, settings: DataSettings, faults: Faults, notes: list[str]) -> tuple[Cells, Features]:
    """Read pairs of conversations."""
    ignored: Counter[str] = Counter()
    found: list[list[list[Turn]]] = []
    pairs = zip(cells_of(split, settings.chosen, "chosen"), cells_of(split, settings.rejected, "rejected"), strict=True)
    prompts = cells_of(split, "prompt", "prompt") if "prompt" in split.data.column_names else [None] * len(split.data)
    for row, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True)):
        try:
            found.append(whole(prompt, [turns_of(cell, ignored) for cell in pair], ignored))
        except Fault as fault:
            faults.setdefault(row, str(fault))
            found.append([[], []])
    if ignored:
        notes.append(f"not read: {', '.join(map(repr, sorted(ignored)))} of the turns of {split.where}")
    return as_cells(found, split, settings)


def whole(prompt: Any, pair: Sequence[list[Turn]], ignored: Counter[str]) -> list[list[Turn]]:
    """Return both conversations from their beginning, with weight for what comes after what they share.

    Raises:
        Fault: nothing is asked, or nothing is answered, or both are the same.
    """
    one, other = pair
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if one == other:
        raise Fault("its chosen and its rejected answer are the same")
    before = one[:same]
    asked = [] if prompt is None else as_turns(prompt, "") if isinstance(prompt, str) else turns_of(prompt, ignored)
    if asked and [*before][: len(asked)] != asked and not (len(asked) == 1 and asked[0] in before):
        before = [*asked, *before]
    if not before:
        raise Fault("nothing is asked before its two answers")
    before = [{**turn, "weight": 0} for turn in before]
    found = [[*before, *turns[same:]] for turns in pair]
    if not all(turns[-1]["role"] == "assistant" and len(turns) > len(before) for turns in found):
        raise Fault("one of its two conversations does not end with an answer of the assistant")
    return found


def as_cells(pairs: Sequence[Sequence[list[Turn]]], split: Split, settings: DataSettings) -> tuple[Cells, Features]:
    """Make columns of pairs of conversations, each with a system prompt where it has none."""
    systems = system_column(split, settings, set(NAMES))
    columns: Mapping[str, list[list[Turn]]] = {
        name: [
            [unlearned(turn) for turn in with_system(pair[place], system)] if pair[place] else []
            for pair, system in zip(pairs, systems, strict=True)
        ]
        for place, name in enumerate(NAMES[1:])
    }
    return dict(columns), Features(dict.fromkeys(columns, MESSAGES))


def unlearned(turn: Turn) -> Turn:
    """Return a turn, without weight unless it is the assistant's."""
    return turn if turn["role"] == "assistant" else {**turn, "weight": 0}


def check_preference(settings: DataSettings) -> None:
    """Raise InputError where settings speak of other forms of data, or of what is done on logits."""
    for name in ("messages", "response"):
        if getattr(settings, name):
            raise InputError(f"data.{name}: preferences are read from data.chosen and data.rejected: remove it")
    if settings.public:
        raise InputError("data.public: nothing is distilled on preferences: remove it, and choose another aggregator")
