"""Read pairs of answers of which people prefer one: `chosen` and `rejected`, as texts or as lists of turns.

    prompt    a text, or turns; where there is none, what both answers begin with
    chosen    the answer, or the whole conversation with it
    rejected  likewise

Conversations become `chosen` and `rejected` as whole lists of turns, in which the turns before the answers have the
weight 0; texts become `prompt`, `chosen` and `rejected`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Features, Value

from hellora.core.errors import InputError
from hellora.data.cells import Faults, cells_of, texts
from hellora.data.forms import (
    MESSAGES,
    PAIRS,
    SYSTEM,
    Cells,
    Form,
    below,
    check_chat_settings,
    holds_lists,
    system_column,
)
from hellora.data.loading import Split
from hellora.data.settings import DataSettings
from hellora.data.turns import Fault, Turn, as_turns, asked, is_empty, turns_of, with_system

NAMES = ("prompt", "chosen", "rejected")
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
PROMPTS = {prompt: more for prompt, _, more in PAIRS}  # columns of prompts, and what may stand below each


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
    check_chat_settings(Form("pairs"), settings, prompts_alone=False)
    found = answers(split, settings, faults)
    if not settings.as_chat:
        left = [name for name in SYSTEM if name in split.data.column_names]
        notes.extend([f"not read: {', '.join(map(repr, left))} of {split.where} (data.as_chat)"] if left else [])
        return found, Features(dict.fromkeys(NAMES, Value("string")))
    turns = [[transcribed(prompt, answer) for answer in pair] for prompt, *pair in zip(*found.values(), strict=True)]
    return as_cells(turns, split, settings)


def answers(split: Split, settings: DataSettings, faults: Faults) -> Cells:
    """Read prompts and answers that are texts; without a prompt, it is what both answers begin with, up to a space."""
    chosen, rejected = (
        texts(cells_of(split, getattr(settings, name), name), split, name, faults) for name in NAMES[1:]
    )
    form = prompt_form(split, settings)
    found: Sequence[str | None] = [None] * len(chosen) if form is None else below(form, split)
    triples = [parted(*triple) for triple in zip(found, chosen, rejected, strict=True)]
    cells: Cells = dict(zip(NAMES, zip(*triples, strict=True), strict=True))
    for row, (prompt, one, other) in enumerate(zip(*cells.values(), strict=True)):
        if not prompt.strip():
            faults.setdefault(row, "nothing is asked before its two answers")
        elif one == other:
            faults.setdefault(row, "its chosen and its rejected answer are the same")
        elif not (one.strip() and other.strip()):
            faults.setdefault(row, "one of its answers is empty")
    return {name: list(column) for name, column in cells.items()}


def transcribed(prompt: str, answer: str) -> list[Turn]:
    """Make a conversation of a text and its answer; of a transcript, as hh-rlhf has them ("Human: … Assistant:"), each
    of its turns.
    """
    before, *said = SPEAKER.split(prompt)
    speakers, words = said[::2], said[1::2]
    alternates = speakers == ["Human", "Assistant"] * (len(speakers) // 2)
    if before.strip() or not said or not alternates or words[-1].strip():
        return as_turns(prompt, answer)
    pairs = zip(words[::2], [*words[1:-1:2], answer], strict=True)
    turns = [turn for asked, answered in pairs for turn in as_turns(asked.strip(), answered.strip())]
    return [*({**turn, "weight": 0} for turn in turns[:-1]), turns[-1]]


def prompt_form(split: Split, settings: DataSettings) -> Form | None:
    """Find where prompts stand that are texts: in a template, or in a column by its name; None where nowhere."""
    if settings.prompt:
        return Form("pairs", settings.prompt)
    names = split.data.column_names
    for name, more in PROMPTS.items():
        if name in names:
            return Form("pairs", f"{{{name}}}", below=next((each for each in more if each in names), ""))
    return None


def parted(prompt: str | None, one: str, other: str) -> tuple[str, str, str]:
    """Return a prompt and two answers; without a prompt, or where both begin with it, what both begin with is it."""
    if prompt is not None and not (prompt.strip() and one.startswith(prompt) and other.startswith(prompt)):
        return prompt, one, other
    shared = shared_text(one, other) if prompt is None else prompt
    return shared, one[len(shared) :], other[len(shared) :]


def shared_text(one: str, other: str) -> str:
    """Return what two texts begin with, up to its last space: an answer begins with a whole word."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if same == max(len(one), len(other)):
        return one
    spaces = [place for place, letter in enumerate(one[:same]) if letter.isspace()]
    return one[: spaces[-1] + 1] if spaces else ""


def conversations(split: Split, settings: DataSettings, faults: Faults, notes: list[str]) -> tuple[Cells, Features]:
    """Read pairs of conversations."""
    ignored: Counter[str] = Counter()
    found: list[list[list[Turn]]] = []
    pairs = zip(cells_of(split, settings.chosen, "chosen"), cells_of(split, settings.rejected, "rejected"), strict=True)
    for row, (prompt, pair) in enumerate(zip(prompts_beside(split, settings), pairs, strict=True)):
        try:
            found.append(whole(prompt, [turns_of(cell, ignored) for cell in pair], ignored))
        except Fault as fault:
            faults.setdefault(row, str(fault))
            found.append([[], []])
    if ignored:
        notes.append(f"not read: {', '.join(map(repr, sorted(ignored)))} of the turns of {split.where}")
    return as_cells(found, split, settings)


def prompts_beside(split: Split, settings: DataSettings) -> Sequence[Any]:
    """Return the prompt beside each pair of conversations: a text, turns, or None."""
    if not settings.prompt and "prompt" in split.data.column_names and holds_lists(split, "prompt"):
        return cells_of(split, "prompt", "prompt")
    form = prompt_form(split, settings)
    return [None] * len(split.data) if form is None else below(form, split)


def whole(prompt: Any, pair: Sequence[list[Turn]], ignored: Counter[str]) -> list[list[Turn]]:
    """Return both conversations from their beginning, with weight for what comes after what they share.

    Raises:
        Fault: nothing is asked, or nothing is answered, or both are the same, or the prompt is of another conversation.
    """
    one, other = pair
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if one == other:
        raise Fault("its chosen and its rejected answer are the same")
    before = begun(one[:same], prompt, ignored)
    if not any(turn["role"] != "system" for turn in before):
        raise Fault("nothing is asked before its two answers")
    before = [{**turn, "weight": 0} for turn in before]
    found = [[*before, *turns[same:]] for turns in pair]
    if not all(turns[-1]["role"] == "assistant" and len(turns) > len(before) for turns in found):
        raise Fault("one of its two conversations does not end with an answer of the assistant")
    return found


def begun(shared: Sequence[Turn], prompt: Any, ignored: Counter[str]) -> list[Turn]:
    """Return how two conversations begin: with what they share, or the prompt beside them where they share nothing.

    Raises:
        Fault: they share something, and it begins otherwise than the prompt.
    """
    if is_empty(prompt) or (isinstance(prompt, str) and not prompt.strip()):
        return list(shared)
    asked = as_turns(prompt, "") if isinstance(prompt, str) else turns_of(prompt, ignored)
    if not shared:
        return asked
    first = said_in(asked)
    if said_in(shared)[: len(first)] != first:
        raise Fault("its prompt is not how its two conversations begin")
    system = [turn for turn in asked[:1] if turn["role"] == "system" and shared[0]["role"] != "system"]
    return [*system, *shared]


def said_in(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Return who says what, without system prompts and outer white space."""
    return [(turn["role"], turn["content"].strip()) for turn in turns if turn["role"] != "system"]


def asked_of(split: Split, settings: DataSettings, faults: Faults, notes: list[str]) -> tuple[Cells, Features]:
    """Read what is asked of pairs of answers alone, for predictions."""
    cells, features = read_preferences(split, settings, faults, notes)
    if "prompt" in cells:
        return {"prompt": cells["prompt"]}, Features({"prompt": features["prompt"]})
    return {"messages": [asked(turns) if turns else [] for turns in cells["chosen"]]}, Features({"messages": MESSAGES})


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
