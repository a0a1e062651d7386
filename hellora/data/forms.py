"""Recognise in which form a source holds what a language model learns from, and read it into canonical columns.

    conversations   messages (OpenAI), conversations (ShareGPT), prompt and completion as lists of turns (TRL)
    pairs           a prompt and a response: prompt and completion, instruction and response, question and answer, …
    texts           one column of plain text, every token of which is learned

Settings go before names: `data.messages`, the templates `data.prompt` and `data.response`, or another column for
`data.text` say what is read.
"""

import json
import string
from collections import Counter
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Features, Value

from hellora.core.errors import InputError
from hellora.data.cells import Faults, cells_of, filled, texts
from hellora.data.loading import Split
from hellora.data.settings import DataSettings
from hellora.data.turns import Fault, Turn, as_turns, asked, is_empty, learned, turns_of, with_system

Kind = Literal["conversations", "pairs", "completions", "texts"]
CONVERSATIONS = ("messages", "conversations", "conversation")
# Prompt and response by the names that people give them, and what may stand below the prompt.
PAIRS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("prompt", "completion", ()),
    ("prompt", "response", ()),
    ("instruction", "response", ("input", "context")),  # Alpaca's, Dolly's
    ("instruction", "output", ("input", "context")),
    ("question", "answer", ()),
    ("document", "summary", ()),
    ("article", "highlights", ()),
    ("dialogue", "summary", ()),
)
BESIDE = ("tools", "functions", "images", "image", "audios", "videos")  # of a row: they change what its turns mean
SYSTEM = ("system", "system_prompt")
USUAL = (*CONVERSATIONS, *dict.fromkeys(name for *pair, more in PAIRS for name in (*pair, *more)), "text", *SYSTEM)
MESSAGES = [{"role": Value("string"), "content": Value("string"), "weight": Value("int8")}]

Cells = dict[str, Sequence[Any]]


@dataclass(frozen=True)
class Form:
    """A form says where in a source prompts and answers, conversations or texts stand."""

    kind: Kind
    prompt: str = ""  # a template over columns; of conversations and texts their column
    response: str = ""  # likewise, of pairs
    below: str = ""  # a column whose text stands below the prompt where it is not empty

    def described(self) -> str:
        """Say what is read, for a person."""
        if self.kind == "conversations":
            return f"conversations ('{self.prompt}')"
        if self.kind == "completions":
            return f"conversations ('{self.prompt}', of which '{self.response}' is learned)"
        if self.kind == "texts":
            return f"plain texts ('{self.prompt}')"
        below = f", '{self.below}' below it" if self.below else ""
        return f"prompts ('{self.prompt}'{below}) with responses ('{self.response}')"

    def columns(self) -> set[str]:
        """Name the columns that are read, where they have no template."""
        return {self.prompt.strip("{}"), self.response.strip("{}"), self.below} - {""}


def form_of(split: Split, settings: DataSettings, prompts_alone: bool = False) -> Form:
    """Find the form of a split.

    Raises:
        InputError: no column has a name that is known.
    """
    names = split.data.column_names
    if settings.messages:
        return Form("conversations", settings.messages)
    if settings.prompt or settings.response:
        return Form("pairs", settings.prompt or "{instruction}", settings.response or "{response}")
    if settings.text != "text" and settings.text in names:
        return Form("texts", settings.text)
    if found := next((name for name in CONVERSATIONS if name in names), None):
        return Form("conversations", found)
    for prompt, response, more in PAIRS:
        if prompt in names and (response in names or prompts_alone):
            below = next((name for name in more if name in names), "")
            if holds_lists(split, prompt):
                return Form("completions", prompt, response if response in names else "")
            return Form("pairs", f"{{{prompt}}}", f"{{{response}}}" if response in names else "", below)
    if settings.text in names:
        return Form("texts", settings.text)
    if {settings.chosen, settings.rejected} <= set(names):
        raise InputError(
            f"task.name: {split.where} has answers of which one is preferred ('{settings.chosen}', "
            f"'{settings.rejected}'): set task.name = 'preference'"
        )
    raise InputError(
        f"data.prompt: {split.where} has no conversations (messages, conversations), no prompts with responses "
        f"(prompt and completion, instruction and response, …) and no '{settings.text}' (it has {', '.join(names)}): "
        f"set data.messages, data.prompt and data.response, or data.text"
    )


def holds_lists(split: Split, column: str) -> bool:
    """Say whether a column has lists of turns, and no texts."""
    first = next((cell for cell in split.data[column] if cell is not None), None)
    if isinstance(first, str) and first.lstrip().startswith("[{"):  # CSV has lists as JSON
        with suppress(ValueError):
            first = json.loads(first)
    return isinstance(first, list | dict)


def read_form(
    split: Split, settings: DataSettings, faults: Faults, notes: list[str], prompts_alone: bool = False
) -> tuple[Cells, Features]:
    """Read a split into `messages`, into `prompt` and `response`, or into `text`; rows that cannot be used become
    faults, and what a person should know is noted.

    Args:
        prompts_alone: for predictions; answers need not be there, and are left out
    """
    form = form_of(split, settings, prompts_alone)
    notes.append(f"{split.where} holds {form.described()}{unread(split, form, settings)}")
    check_chat_settings(form, settings, prompts_alone)
    if form.kind == "texts" and not (prompts_alone and settings.as_chat):
        found = texts(cells_of(split, form.prompt, "text"), split, "text", faults)
        return {"text": found}, Features({"text": Value("string")})
    if form.kind == "texts":  # asked of a model that learned turns
        form = Form("pairs", f"{{{form.prompt}}}")
    if form.kind == "pairs":
        prompts = texts(below(form, split), split, "prompt", faults)
        responses = [""] * len(prompts)
        if not prompts_alone:
            responses = texts(filled(form.response, split, "response"), split, "response", faults)
        if not settings.as_chat:
            columns = {"prompt": prompts} if prompts_alone else {"prompt": prompts, "response": responses}
            return {**columns}, Features(dict.fromkeys(columns, Value("string")))
        turns = [as_turns(*pair) for pair in zip(prompts, responses, strict=True)]
    else:
        turns = conversations(split, form, faults, notes, prompts_alone)
    systems = system_column(split, settings, form.columns())
    messages = [with_system(each, system) if each else [] for each, system in zip(turns, systems, strict=True)]
    return {"messages": messages}, Features({"messages": MESSAGES})


def below(form: Form, split: Split) -> list[str]:
    """Fill the prompts, with what stands below each after an empty line."""
    prompts = filled(form.prompt, split, "prompt")
    if not form.below:
        return prompts
    more = [cell.strip() for cell in filled(f"{{{form.below}}}", split, "prompt")]
    return [f"{prompt}\n\n{each}" if each else prompt for prompt, each in zip(prompts, more, strict=True)]


def conversations(split: Split, form: Form, faults: Faults, notes: list[str], prompts_alone: bool) -> list[list[Turn]]:
    """Read the conversations of a split, [] for one that is a fault."""
    found: list[list[Turn]] = []
    ignored: Counter[str] = Counter()
    first = cells_of(split, form.prompt, "messages")
    second = cells_of(split, form.response, "response") if form.response else [[]] * len(first)
    beside = {name: split.data[name][:] for name in BESIDE if name in split.data.column_names}
    for row, (cell, completion) in enumerate(zip(first, second, strict=True)):
        try:
            if there := next((name for name, cells in beside.items() if not is_empty(cells[row])), None):
                raise Fault(f"it has {there!r}, and only turns of text are learned")
            turns = turns_of(cell, ignored)
            if form.kind == "completions":
                turns = [{**turn, "weight": 0} for turn in turns]
                turns += [] if prompts_alone else turns_of(completion, ignored)
            if prompts_alone and not (turns := asked(turns)):
                raise Fault("it asks nothing")
            if not prompts_alone and not learned(turns):
                raise Fault("it has no turn of the assistant to learn")
            found.append(turns)
        except Fault as fault:
            faults.setdefault(row, str(fault))
            found.append([])
    if ignored:
        notes.append(f"not read: {', '.join(map(repr, sorted(ignored)))} of the turns of {split.where}")
    return found


def system_column(split: Split, settings: DataSettings, read: Container[str]) -> list[str]:
    """Return the system prompt of each row: of a column that is not `read` as something else, or of the template or
    text that `data.system` is."""
    if is_template(settings.system, split):
        return filled(settings.system, split, "system")
    if settings.system:
        return [written_out(settings.system)] * len(split.data)
    column = next((name for name in SYSTEM if name in split.data.column_names and name not in read), None)
    return [""] * len(split.data) if column is None else filled(f"{{{column}}}", split, "system")


def is_template(text: str, split: Split) -> bool:
    """Say whether a text has names of columns in braces, and is no text that has braces itself."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        return False
    return bool(names) and all(name in split.data.column_names for name in names)


def written_out(text: str) -> str:
    """Return a text without columns as a template has it, in which a brace is doubled; one that is none as it is."""
    with suppress(ValueError, IndexError, KeyError):
        return text.format()
    return text


def check_chat_settings(form: Form, settings: DataSettings, prompts_alone: bool) -> None:
    """Raise InputError where settings are of conversations, and the data are none."""
    if form.kind == "texts" and settings.as_chat and not prompts_alone:
        raise InputError("data.as_chat: plain texts have no turns: remove it, or set data.prompt and data.response")
    if settings.system and not settings.as_chat and form.kind in ("texts", "pairs"):
        raise InputError(
            "data.system is for conversations: set data.as_chat = true, which makes turns of prompts and responses, or "
            "remove it"
        )


def unread(split: Split, form: Form, settings: DataSettings) -> str:
    """Say which columns with a known name are not read, for they may be what was meant."""
    if not settings.found_by_name:
        return ""
    known = {*USUAL} - form.columns() - {settings.label}
    if form.kind != "pairs" or settings.as_chat:
        known -= set(SYSTEM)
    left = [name for name in split.data.column_names if name in known]
    return f"; not read: {', '.join(map(repr, left))}" if left else ""


# ------------------------------------------------------------------------------------------------ of canonical columns


def holds_turns(rows: Any) -> bool:
    """Say whether examples are conversations."""
    return "messages" in rows.column_names or (
        "chosen" in rows.column_names and rows.features["chosen"] != Value("string")
    )


def prompts_of(rows: Any) -> list[str]:
    """Return what is asked in each row, as a text: of a conversation its turns before the last answer."""
    if "messages" in rows.column_names:
        return [spoken(asked(turns)) for turns in rows["messages"][:]]
    return list(rows["prompt" if "prompt" in rows.column_names else "text"][:])


def references_of(rows: Any) -> list[str]:
    """Return what each row answers; "" where it does not."""
    if "messages" in rows.column_names:
        return [turns[-1]["content"] if turns[-1]["role"] == "assistant" else "" for turns in rows["messages"][:]]
    return list(rows["response"][:]) if "response" in rows.column_names else [""] * len(rows)


def spoken(turns: Sequence[Turn]) -> str:
    """Write turns as a text; one of the user alone is what it says."""
    if len(turns) == 1 and turns[0]["role"] == "user":
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
