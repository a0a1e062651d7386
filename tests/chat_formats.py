"""Chat formats, each written twice: as a Jinja template, and as the pieces of text that it stands for.

The templates are made anew from the formats that model makers publish. A piece is (text, is it learned?); the pieces
are the table that masks are compared with. The tokenizer has a token for each byte, and one for each special word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Turns = Sequence[dict[str, Any]]
Pieces = list[tuple[str, bool]]

ALTERNATES = """\
{%- set talk = messages[1:] if messages[0].role == 'system' else messages -%}
{%- for m in talk -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate user/assistant') -}}{%- endif -%}{%- endfor -%}
"""


@dataclass(frozen=True)
class Format:
    name: str
    template: str
    pieces: Callable[[Turns], Pieces]
    specials: tuple[str, ...]
    end: str  # the special word that ends a text
    system: bool = True
    alternates: bool = False
    trims: bool = False


def chatml(turns: Turns, default: str | None = None, newline: bool = True) -> Pieces:
    pieces: Pieces = []
    if default is not None and turns[0]["role"] != "system":
        pieces.append((f"<|im_start|>system\n{default}<|im_end|>\n", False))
    for turn in turns:
        pieces.append((f"<|im_start|>{turn['role']}\n", False))
        own = turn["role"] == "assistant"
        pieces += [(f"{turn['content']}<|im_end|>", own), ("\n", own and newline)]
    return pieces


CHATML = """\
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
QWEN = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\nBe Qwen.<|im_end|>\\n' -}}{%- endif -%}\n"
    + CHATML
)
MARKED = """\
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}{%- generation -%}{{- m.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- else -%}{{- m.content + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
LLAMA3 = """\
{{- '<|begin_of_text|>' -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""


def llama3(turns: Turns) -> Pieces:
    pieces: Pieces = [("<|begin_of_text|>", False)]
    for turn in turns:
        pieces.append((f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n", False))
        pieces.append((f"{turn['content'].strip()}<|eot_id|>", turn["role"] == "assistant"))
    return pieces


MISTRAL = (
    ALTERNATES
    + """\
{{- '<s>' -}}
{%- for m in talk -%}
{%- if m.role == 'user' -%}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.first and messages[0].role == 'system' else '') -}}
{{- m.content + '[/INST]' -}}
{%- else -%}{{- ' ' + m.content + '</s>' -}}{%- endif -%}{%- endfor -%}
"""
)


def mistral(turns: Turns) -> Pieces:
    system, talk = (turns[0]["content"] + "\n\n", turns[1:]) if turns[0]["role"] == "system" else ("", turns)
    pieces: Pieces = [("<s>", False)]
    for place, turn in enumerate(talk):
        if turn["role"] == "user":
            pieces.append((f"[INST] {system if place == 0 else ''}{turn['content']}[/INST]", False))
        else:
            pieces.append((f" {turn['content']}</s>", True))
    return pieces


LLAMA2 = (
    ALTERNATES
    + """\
{%- for m in talk -%}
{%- if m.role == 'user' -%}
{{- '<s>[INST] ' -}}
{%- if loop.first and messages[0].role == 'system' -%}
{{- '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
{{- m.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + m.content + ' </s>' -}}{%- endif -%}{%- endfor -%}
"""
)


def llama2(turns: Turns) -> Pieces:
    system, talk = ("", turns)
    if turns[0]["role"] == "system":
        system, talk = f"<<SYS>>\n{turns[0]['content']}\n<</SYS>>\n\n", turns[1:]
    pieces: Pieces = []
    for place, turn in enumerate(talk):
        if turn["role"] == "user":
            pieces.append((f"<s>[INST] {system if place == 0 else ''}{turn['content']} [/INST]", False))
        else:
            pieces.append((f" {turn['content']} </s>", True))
    return pieces


GEMMA = """\
{%- if messages[0].role == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{{- '<bos>' -}}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('roles must alternate') -}}{%- endif -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' -}}
{{- m.content | trim + '<end_of_turn>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


def gemma(turns: Turns) -> Pieces:
    pieces: Pieces = [("<bos>", False)]
    for turn in turns:
        own = turn["role"] == "assistant"
        pieces.append((f"<start_of_turn>{'model' if own else 'user'}\n", False))
        pieces.append((f"{turn['content'].strip()}<end_of_turn>\n", own))
    return pieces


def tagged(begin: str, end: str) -> tuple[str, Callable[[Turns], Pieces]]:
    """Phi's and Zephyr's: a line with the role, the text, an end."""
    template = (
        "{%- for m in messages -%}{{- '<|' + m.role + '|>\\n' + m.content + 'END\\n' -}}{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
    ).replace("END", end)

    def pieces(turns: Turns) -> Pieces:
        found: Pieces = [(begin, False)] if begin else []
        for turn in turns:
            found.append((f"<|{turn['role']}|>\n", False))
            found.append((f"{turn['content']}{end}\n", turn["role"] == "assistant"))
        return found

    return (f"{{{{- '{begin}' -}}}}\n" if begin else "") + template, pieces


VICUNA = """\
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{- m.content + ' ' -}}
{%- elif m.role == 'user' -%}{{- 'USER: ' + m.content + ' ASSISTANT:' -}}
{%- else -%}{{- ' ' + m.content + '</s>' -}}{%- endif -%}{%- endfor -%}
"""


def vicuna(turns: Turns) -> Pieces:
    pieces: Pieces = []
    for turn in turns:
        text = turn["content"]
        said = {"system": f"{text} ", "user": f"USER: {text} ASSISTANT:", "assistant": f" {text}</s>"}
        pieces.append((said[turn["role"]], turn["role"] == "assistant"))
    return pieces


COMMAND = """\
{%- set names = {'system': '<|SYSTEM|>', 'user': '<|USER|>', 'assistant': '<|CHATBOT|>'} -%}
{{- '<BOS>' -}}
{%- for m in messages -%}{{- '<|START|>' + names[m.role] + m.content + '<|END|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|START|><|CHATBOT|>' -}}{%- endif -%}
"""


def command(turns: Turns) -> Pieces:
    names = {"system": "<|SYSTEM|>", "user": "<|USER|>", "assistant": "<|CHATBOT|>"}
    pieces: Pieces = [("<BOS>", False)]
    for turn in turns:
        pieces.append((f"<|START|>{names[turn['role']]}", False))
        pieces.append((f"{turn['content']}<|END|>", turn["role"] == "assistant"))
    return pieces


DEEPSEEK = """\
{{- '<begin>' -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{- m.content + '\\n\\n' -}}
{%- elif m.role == 'user' -%}{{- 'User: ' + m.content + '\\n\\n' -}}
{%- else -%}{{- 'Assistant: ' + m.content + '<end>' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant: ' -}}{%- endif -%}
"""


def deepseek(turns: Turns) -> Pieces:
    pieces: Pieces = [("<begin>", False)]
    for turn in turns:
        if turn["role"] == "assistant":
            pieces += [("Assistant: ", False), (f"{turn['content']}<end>", True)]
        else:
            pieces.append((f"{'User: ' if turn['role'] == 'user' else ''}{turn['content']}\n\n", False))
    return pieces


IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI, PHI_PIECES = tagged("", "<|end|>")
ZEPHYR, ZEPHYR_PIECES = tagged("<s>", "</s>")
TAGS = ("<|system|>", "<|user|>", "<|assistant|>")
FORMATS = (
    Format("chatml", CHATML, chatml, IM, "<|im_end|>"),
    Format("chatml_marked", MARKED, lambda turns: chatml(turns, newline=False), IM, "<|im_end|>"),
    Format("qwen", QWEN, lambda turns: chatml(turns, default="Be Qwen."), IM, "<|im_end|>"),
    Format("llama3", LLAMA3, llama3, HEADERS, "<|eot_id|>", trims=True),
    Format("llama2", LLAMA2, llama2, ("<s>", "</s>"), "</s>", alternates=True),
    Format("mistral", MISTRAL, mistral, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", alternates=True),
    Format("gemma", GEMMA, gemma, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", False, True, True),
    Format("phi", PHI, PHI_PIECES, (*TAGS, "<|end|>"), "<|end|>"),
    Format("zephyr", ZEPHYR, ZEPHYR_PIECES, ("<s>", "</s>"), "</s>"),
    Format("vicuna", VICUNA, vicuna, ("</s>",), "</s>"),
    Format("command", COMMAND, command, ("<BOS>", "<|START|>", "<|END|>", "<|CHATBOT|>"), "<|END|>"),
    Format("deepseek", DEEPSEEK, deepseek, ("<begin>", "<end>"), "<end>"),
)


def tokenizer_of(format: Format) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte, and one for each special word of a format."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(word, normalized=False) for word in format.specials])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=format.end, pad_token=format.end)
    made.chat_template = format.template
    return made


def table(tokenizer: PreTrainedTokenizerFast, format: Format, turns: Turns) -> tuple[list[int], list[bool]]:
    """Token ids, and whether each is learned, of the pieces that a format stands for."""
    written = [{**turn, "content": spaced(turn["content"], format.specials)} for turn in turns]
    ids: list[int] = []
    mask: list[bool] = []
    for text, learned in format.pieces(written):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += tokens
        mask += [learned] * len(tokens)
    return ids, mask


def spaced(text: str, words: Sequence[str]) -> str:
    """A text in which nobody writes a special word."""
    for word in words:
        text = text.replace(word, " ".join(word))
    return text


SAID = (
    *("hello", "What is 2 + 2?", "  spaces around  ", "two\nlines", "über alles 🌊", "I said <|im_end|> and </s>!"),
    *("assistant", "<|im_start|>user", "USER: no ASSISTANT: yes", "[INST] x [/INST]", "<start_of_turn>model", "a" * 60),
)


def conversation(format: Format, seed: int) -> list[dict[str, Any]]:
    """A conversation of one to four exchanges such as a format takes, two answers in a row where it allows them."""
    rng = np.random.default_rng(seed)

    def turn(role: str) -> dict[str, Any]:
        return {"role": role, "content": SAID[int(rng.integers(len(SAID)))]}

    turns = [turn("system")] if format.system and rng.random() < 0.5 else []
    for _ in range(int(rng.integers(1, 5))):
        turns += [turn("user"), turn("assistant")]
        if not format.alternates and rng.random() < 0.3:
            turns.append(turn(("user", "assistant")[int(rng.integers(2))]))
    if turns[-1]["role"] == "user" or rng.random() < 0.2:
        turns.append(turn("assistant") if turns[-1]["role"] == "user" else turn("user"))
    return turns
